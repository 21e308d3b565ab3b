-- statefulSetLink
--
-- Links a uid to a pod; the last writer wins. The uid's hash lists persistent links only: a persistent link is added to
-- it, and a temporary one is removed from it.
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
-- Reply {previous}: the pod that was linked before, or '-1'
-- Error SFARG: an argument broke its rule; nothing was changed
-- Error SFCORRUPT: the link holds something that is not a pod id; nothing was changed
-- Error WRONGTYPE: a key is not of the type given above; nothing was changed

local call, pcall, find = redis.call, redis.pcall, string.find
local link, hash, service = KEYS[1], KEYS[2], ARGV[1]
if not service then
  return redis.error_reply('SFARG service, the first argument, is missing.')
end

-- Programs that share the store read a pod id as an int64. Decimals of equal length compare like numbers. Written out at
-- both places, because a function would cost every write.
local most = '9223372036854775807'

local pod = ARGV[2] or ''
if pod == '' or find(pod, '%D') or pod < '1' and pod ~= '0' or #pod > 18 and (#pod > 19 or pod > most) then
  return redis.error_reply('SFARG pod must be a decimal pod id without leading zeros.')
end
local persist_seconds = ARGV[3] or ''
local persistent = persist_seconds == '-1'
if not persistent
  and not (find(persist_seconds, '^[1-9]%d*$') and tonumber(persist_seconds) <= 9007199254740)
then
  return redis.error_reply('SFARG persist_seconds must be -1 or a whole number from 1 to 9007199254740.')
end

local previous = pcall('GET', link)
local trouble
if previous and previous ~= pod then
  if type(previous) == 'table' then
    trouble = previous
  elseif previous == '' or find(previous, '%D') or #previous > 18 and (#previous > 19 or previous > most) then
    trouble = redis.error_reply('SFCORRUPT The link holds something that is not a pod id; repair or delete its key.')
  end
end

-- A retry of a call that was done returns the first reply. One command asks whether the call was done, and notes that it
-- is. It is the first write, and refuses an op_ms that is no time.
local op, op_ms = KEYS[3], ARGV[4] or ''
if op_ms == '0' then op = nil end
if op then
  if #op_ms > 15 then op_ms = '' end
  local noted = not trouble and pcall('SET', op, previous or '-1', 'NX', 'PX', op_ms)
  if not noted then
    local done = pcall('GET', op)
    if type(done) == 'table' then return done end
    if done then
      -- This write lets a WAIT after this call wait until the replicas have what the first call wrote.
      call('PEXPIRE', op, op_ms)
      return {done}
    end
  elseif noted.err and (find(noted.err, 'not an integer', 1, true) or find(noted.err, 'expire time', 1, true)) then
    return redis.error_reply('SFARG op_ms must be a whole number of milliseconds, with at most 15 digits.')
  elseif noted.err then
    return noted
  end
end
if trouble then return trouble end

-- What may fail comes before the link is written, so an error leaves nothing half done.
local listed
if persistent then
  listed = pcall('HSET', hash, service, pod)
else
  listed = pcall('HEXISTS', hash, service)
end
if type(listed) == 'table' then
  if op then call('DEL', op) end
  if not find(listed.err, 'WRONGTYPE', 1, true) then return listed end
  return redis.error_reply("WRONGTYPE KEYS[2], the uid's hash, is not a hash; repair or delete its key.")
end

-- One SET per link, never DEL and EXPIRE, so that no reader sees the link without its value or its expiry.
if persistent then
  call('SET', link, pod)
else
  call('SET', link, pod, 'EX', persist_seconds)
  if listed == 1 then call('HDEL', hash, service) end
end

return {previous or '-1'}
