-- statefulRemoveLink
--
-- Removes a uid's link, or demotes it: the link keeps its pod for a grace period in which the user may reconnect, then
-- expires. Demoting a temporary link starts a new grace period. In either case the service is removed from the uid's
-- hash, even if there was no link.
--
-- Access: write
-- KEYS[1] link: string, sf:{<namespace>:lk:<uid>}<service>
-- KEYS[2] hash: hash, sf:{<namespace>:lk:<uid>}
-- KEYS[3] op (optional): string, sf:op:{<namespace>:lk:<uid>}:<token>; keeps the reply, so that the
--   same call sent again returns it and changes nothing
-- KEYS[4] claim (optional): string, sf:own:{<namespace>:lk:<uid>}<service>; a claim is over once its link is removed.
--   Without this key its pod sees to that
-- ARGV[1] service: the service's name, a field of the hash
-- ARGV[2] persist_seconds: -1 to remove the link now, or the seconds (from 1) of its grace period
-- ARGV[3] op_ms (with KEYS[3]): how long the reply is kept, a whole number of milliseconds; 0 keeps none
-- Reply {existed}: 1 if there was a link, otherwise 0 (integers)
-- Error SFARG: an argument broke its rule; nothing was changed
-- Error SFCORRUPT: the link holds something that is not a pod id; nothing was changed
-- Error WRONGTYPE: a key is not of the type given above; nothing was changed

local link, hash, service = KEYS[1], KEYS[2], ARGV[1]
if not service then
  return redis.error_reply('SFARG service, the first argument, is missing.')
end

-- Programs that share the store read a pod id as an int64. Decimals of equal length compare like numbers.
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

-- A retry of a call that was done returns the first reply.
local op, op_ms = KEYS[3], ARGV[3] or ''
if op_ms == '0' then op = nil end
if op then
  if not (string.find(op_ms, '^[1-9]%d*$') and #op_ms <= 15) then
    return redis.error_reply('SFARG op_ms must be a whole number of milliseconds, with at most 15 digits.')
  end
  local done = redis.pcall('GET', op)
  if type(done) == 'table' then return done end
  if done then
    -- This write lets a WAIT after this call wait until the replicas have what the first call wrote.
    redis.call('PEXPIRE', op, op_ms)
    return cjson.decode(done)
  end
end

local function finish(reply)
  if op then redis.call('SET', op, cjson.encode(reply), 'PX', op_ms) end
  return reply
end

-- What is not a claim stays as it is.
local function end_claim()
  local record = KEYS[4] and redis.pcall('GET', KEYS[4])
  local fence = type(record) == 'string' and string.match(record, '^([1-9]%d*) %d+ %S+$')
  if fence then redis.call('SET', KEYS[4], fence .. ' - -', 'EX', 600) end
end

-- What may fail comes before the link is changed, so an error leaves nothing half done.
local previous = redis.pcall('GET', link)
if type(previous) == 'table' then return previous end
if previous and not is_pod(previous) then
  return redis.error_reply('SFCORRUPT The link holds something that is not a pod id; repair or delete its key.')
end
local unlisted = redis.pcall('HDEL', hash, service)
if type(unlisted) == 'table' then
  if not string.find(unlisted.err, 'WRONGTYPE', 1, true) then return unlisted end
  return redis.error_reply("WRONGTYPE KEYS[2], the uid's hash, is not a hash; repair or delete its key.")
end

if previous then
  if remove_now then
    redis.call('DEL', link)
  else
    -- EXPIRE needs the existing key: after a DEL there is nothing to expire, and the user would lose the pod.
    redis.call('EXPIRE', link, persist_seconds)
  end
end
if remove_now then end_claim() end

return finish({previous and 1 or 0})
