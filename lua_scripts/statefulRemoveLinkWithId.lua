-- statefulRemoveLinkWithId
--
-- Removes or demotes a uid's link as statefulRemoveLink does, but only if it points to the given pod: a late disconnect
-- must never remove the link to the pod that the user has moved to. If the hash has a link that is not there, the
-- link's key was evicted: it is restored first.
--
-- With idle it removes what nobody has used for long: whoever has come back since the caller looked keeps the link. The
-- link is not read, or it would be idle no more, and with it all links that share its object (Redis 7 keeps one for each
-- small number). So its hash tells whose it is, and one that is not persistent stays.
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
-- ARGV[3] pod: a pod id, decimal without leading zeros (0 is a pod like any other)
-- ARGV[4] op_ms (with KEYS[3]): how long the reply is kept, a whole number of milliseconds; 0 keeps none
-- ARGV[5] idle (optional): only if the link is persistent and nobody has read or written it for so many seconds, a whole
--   number; 0 (the default) however lately
-- Reply {removed}: 1 if the link pointed to the pod and was idle, otherwise 0 and nothing was changed (integers)
-- Error SFARG: an argument broke its rule; nothing was changed
-- Error SFCORRUPT: the link, read without idle only, holds something that is not a pod id; nothing was changed
-- Error WRONGTYPE: a key that was read is not of the type given above; nothing was changed

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
local pod = ARGV[3] or ''
if not is_pod(pod) or string.find(pod, '^0%d') then
  return redis.error_reply('SFARG pod must be a decimal pod id without leading zeros.')
end

local idle = ARGV[5] or '0'
if not (string.find(idle, '^%d+$') and #idle <= 15) then
  return redis.error_reply('SFARG idle must be a whole number of seconds, with at most 15 digits.')
end

-- A retry of a call that was done returns the first reply.
local op, op_ms = KEYS[3], ARGV[4] or ''
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

if tonumber(idle) > 0 then
  local since = redis.pcall('OBJECT', 'IDLETIME', link)
  if type(since) == 'table' then return since end
  if not since or since < tonumber(idle) then return finish({0}) end
end

-- Everything is read and checked before the first write, so an error leaves nothing half done.
local owner = tonumber(idle) == 0 and redis.pcall('GET', link)
if type(owner) == 'table' then return owner end
if owner and not is_pod(owner) then
  return redis.error_reply('SFCORRUPT The link holds something that is not a pod id; repair or delete its key.')
end
local is_listed = redis.pcall('HEXISTS', hash, service)
if type(is_listed) == 'table' then
  return redis.error_reply("WRONGTYPE KEYS[2], the uid's hash, is not a hash; repair or delete its key.")
end
-- The two keys of a link can be evicted one by one, or written by other means. What the hash says, nil if nothing. It is
-- read only where it decides something: the hash of a uid may list many services.
local listed
if is_listed == 1 and not owner then
  local services = redis.call('HGETALL', hash)
  for i = 1, #services, 2 do
    if services[i] == service then listed = services[i + 1] end
  end
end
if tonumber(idle) > 0 then
  owner = redis.call('PTTL', link) == -1 and listed
elseif not owner and listed and is_pod(listed) then
  -- The link was persistent, and its string was evicted.
  redis.call('SET', link, listed)
  owner = listed
end

if owner ~= pod then
  return finish({0})
end

if remove_now then
  redis.call('DEL', link)
else
  -- EXPIRE needs the existing key: after a DEL there is nothing to expire, and the user would lose the pod.
  redis.call('EXPIRE', link, persist_seconds)
end
redis.call('HDEL', hash, service)
if remove_now then end_claim() end

return finish({1})
