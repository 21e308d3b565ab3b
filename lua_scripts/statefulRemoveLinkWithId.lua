-- statefulRemoveLinkWithId
--
-- Removes or demotes a uid's link as statefulRemoveLink does, but only if it is the given pod's: a disconnect that
-- arrives late must never remove the link to the pod the user has moved to since.
--
-- Access: write
-- KEYS[1] link: string, sf:{<namespace>:lk:<uid>}<service>
-- KEYS[2] hash: hash, sf:{<namespace>:lk:<uid>}
-- KEYS[3] op (optional): string, sf:op:{<namespace>:lk:<uid>}:<token>; the reply is kept there, so that the
--   same call sent again returns it and changes nothing
-- ARGV[1] service: the service's name, a field of the hash
-- ARGV[2] persist_seconds: -1 to remove the link now, or the seconds (from 1) of its grace period
-- ARGV[3] pod: a pod id, decimal without leading zeros (0 is a pod like any other)
-- ARGV[4] op_ms (with KEYS[3]): how long the reply is kept, a whole number of milliseconds
-- Reply {removed}: 1 if the link was the pod's, otherwise 0 and nothing was changed (integers)
-- Error SFARG: an argument broke its rule; nothing was changed
-- Error SFCORRUPT: the link holds something that is not a pod id; nothing was changed
-- Error WRONGTYPE: a key is not of the type given above; nothing was changed

local link, hash, service = KEYS[1], KEYS[2], ARGV[1]
if not service then
  return redis.error_reply('SFARG service, the first argument, is missing.')
end

-- A pod id is an int64 to the programs that share the store. Digits of one length compare like their numbers.
local function is_pod(text)
  return string.find(text, '^%d+$') and (#text < 19 or #text == 19 and text <= '9223372036854775807')
end

local persist_seconds = ARGV[2] or ''
local remove_now = persist_seconds == '-1'
if not remove_now
  and not (string.find(persist_seconds, '^[1-9]%d*$') and tonumber(persist_seconds) <= 9007199254740)
then
  return redis.error_reply('SFARG persist_seconds must be -1 or a whole number from 1 to 9007199254740.')
end
local pod = ARGV[3] or ''
if not is_pod(pod) or string.find(pod, '^0%d') then
  return redis.error_reply('SFARG pod must be a decimal pod id without leading zeros.')
end

-- A retry of a call that was already done returns what the first one returned.
local op, op_ms = KEYS[3], ARGV[4] or ''
if op then
  if not (string.find(op_ms, '^[1-9]%d*$') and #op_ms <= 15) then
    return redis.error_reply('SFARG op_ms must be a whole number of milliseconds from 1, with at most 15 digits.')
  end
  local done = redis.pcall('GET', op)
  if type(done) == 'table' then return done end
  if done then
    -- A write, so that a WAIT after this call waits for the replicas to have what the first call did.
    redis.call('PEXPIRE', op, op_ms)
    return cjson.decode(done)
  end
end

local function finish(reply)
  if op then redis.call('SET', op, cjson.encode(reply), 'PX', op_ms) end
  return reply
end

-- Everything is read and checked before the first write: an error leaves nothing half done.
local owner = redis.pcall('GET', link)
if type(owner) == 'table' then return owner end
if owner and not is_pod(owner) then
  return redis.error_reply('SFCORRUPT The link holds something that is not a pod id; repair or delete its key.')
end
local listed = redis.pcall('HEXISTS', hash, service)
if type(listed) == 'table' then
  return redis.error_reply("WRONGTYPE KEYS[2], the uid's hash, is not a hash; repair or delete its key.")
end

if owner ~= pod then
  return finish({0})
end

if remove_now then
  redis.call('DEL', link)
else
  -- On the existing key. A DEL before this would leave nothing to expire, and the user would lose the pod.
  redis.call('EXPIRE', link, persist_seconds)
end
redis.call('HDEL', hash, service)

return finish({1})
