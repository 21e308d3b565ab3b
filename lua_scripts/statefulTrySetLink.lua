-- statefulTrySetLink
--
-- Links a uid to a pod unless a different pod holds a persistent link. The owner may renew or change its own link, and
-- any pod may take over a temporary one.
--
-- What the hash says is put right where it differs from the link. If the hash has a link that is not there, its key was
-- evicted, and it is restored.
--
-- Access: write
-- KEYS[1] link: string, sf:{<namespace>:lk:<uid>}<service>
-- KEYS[2] hash: hash, sf:{<namespace>:lk:<uid>}
-- KEYS[3] op (optional): string, sf:op:{<namespace>:lk:<uid>}:<token>; keeps the reply, so that the
--   same call sent again returns it and changes nothing
-- ARGV[1] service: the service's name, a field of the hash
-- ARGV[2] pod: a pod id, decimal without leading zeros (0 is a pod like any other)
-- ARGV[3] persist_seconds: -1 for a persistent link, or the seconds (from 1) of a temporary one
-- ARGV[4] op_ms (with KEYS[3]): how long the reply is kept, a whole number of milliseconds; 0 keeps none
-- Reply {owner}: refused, nothing was changed; owner is the different pod that holds the persistent link
-- Reply {pod, previous}: linked; previous is the pod that was linked before, or '-1'
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

local pod = ARGV[2] or ''
if not is_pod(pod) or string.find(pod, '^0%d') then
  return redis.error_reply('SFARG pod must be a decimal pod id without leading zeros.')
end
local persist_seconds = ARGV[3] or ''
local persistent = persist_seconds == '-1'
if not persistent
  and not (string.find(persist_seconds, '^[1-9]%d*$') and tonumber(persist_seconds) <= 9007199254740)
then
  return redis.error_reply('SFARG persist_seconds must be -1 or a whole number from 1 to 9007199254740.')
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

-- Everything is read and checked before the first write, so an error leaves nothing half done.
local previous = redis.pcall('GET', link)
if type(previous) == 'table' then return previous end
if previous and not is_pod(previous) then
  return redis.error_reply('SFCORRUPT The link holds something that is not a pod id; repair or delete its key.')
end
local is_listed = redis.pcall('HEXISTS', hash, service)
if type(is_listed) == 'table' then
  return redis.error_reply("WRONGTYPE KEYS[2], the uid's hash, is not a hash; repair or delete its key.")
end
-- The two keys of a link can be evicted one by one, or written by other means. What the hash says, nil if nothing. It is
-- read only where it decides something: the hash of a uid may list many services.
local refused = previous and previous ~= pod and redis.call('PTTL', link) == -1
local listed
if is_listed == 1 and (refused or not previous) then
  local services = redis.call('HGETALL', hash)
  for i = 1, #services, 2 do
    if services[i] == service then listed = services[i + 1] end
  end
end
if not previous and listed and is_pod(listed) then
  -- The link was persistent, and its string was evicted.
  redis.call('SET', link, listed)
  previous = listed
  refused = previous ~= pod
end

if refused then
  if listed ~= previous then redis.call('HSET', hash, service, previous) end
  return finish({previous})
end

-- One SET per link, never DEL and EXPIRE, so that no reader sees the link without its value or its expiry.
if persistent then
  redis.call('SET', link, pod)
  redis.call('HSET', hash, service, pod)
else
  redis.call('SET', link, pod, 'EX', persist_seconds)
  redis.call('HDEL', hash, service)
end

return finish({pod, previous or '-1'})
