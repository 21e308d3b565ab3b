-- statefulComputeLinkIfAbsent
--
-- Finds a uid's link, or places the uid, or moves it off a pod that is gone, in one atomic step: however many
-- gateways decide at once, one decision wins and all of them are told the same owner. The states of the pods live in
-- another slot, where no script of this one can look, so the caller says which pods are gone and which it would
-- choose, the best first.
--
--   link                 | a candidate is left      | none is left
--   ---------------------+--------------------------+-------------
--   to a pod not gone    | kept                     | kept
--   to a gone pod        | moved                    | none
--   none, mode 'place'   | placed                   | none
--   none, mode 'move'    | none                     | none
--
-- Mode 'claim' is how a pod accepts a uid: as 'place', and a temporary link to the first candidate itself becomes
-- persistent if persist_seconds is -1. A link to another pod is kept as it is.
--
-- A kept temporary link is extended to persist_seconds once less than half of that remains. Not at every call: each
-- change of an expiry sends an invalidation to every gateway that has the link in its cache.
--
-- Access: write
-- KEYS[1] link: string, sf:{<namespace>:lk:<uid>}<service>
-- KEYS[2] hash: hash, sf:{<namespace>:lk:<uid>}
-- KEYS[3] op (optional): string, sf:op:{<namespace>:lk:<uid>}:<token>; the reply is kept there, so that the
--   same call sent again returns it and changes nothing
-- ARGV[1] service: the service's name, a field of the hash
-- ARGV[2] persist_seconds: -1 to write a persistent link, the seconds (from 1) of a temporary one, or 'keep' for the
--   persistence and remaining time of the link that is moved ('keep' cannot place)
-- ARGV[3] mode: 'place' to link a uid that has no link, 'move' to leave it without, 'claim' as said above
-- ARGV[4] op_ms: how long the reply is kept in KEYS[3], a whole number of milliseconds; 0 without KEYS[3]
-- ARGV[5] gone_count: how many gone pods follow
-- ARGV[6...] gone: the ids of the pods that are gone, as many as gone_count says
-- ARGV[...] candidates: the ids of the pods to choose from, the best first; gone pods among them are passed over
-- Reply {owner, outcome, previous, remaining_ms}: four strings: the pod that is linked and may be used, or '-1';
--   'kept', 'placed', 'moved' or 'none'; the pod that was linked before, or '-1'; the remaining time of the link
--   in milliseconds, '-1' for a persistent link, '-2' without a link
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
local persistent, keep = persist_seconds == '-1', persist_seconds == 'keep'
if not persistent and not keep
  and not (string.find(persist_seconds, '^[1-9]%d*$') and tonumber(persist_seconds) <= 9007199254740)
then
  return redis.error_reply(
    "SFARG persist_seconds must be -1, 'keep' or a whole number from 1 to 9007199254740.")
end
local mode = ARGV[3]
if mode ~= 'place' and mode ~= 'move' and mode ~= 'claim' then
  return redis.error_reply("SFARG mode must be 'place', 'move' or 'claim'.")
end
local gone_count = ARGV[5] or ''
if not string.find(gone_count, '^%d+$') or tonumber(gone_count) > #ARGV - 5 then
  return redis.error_reply('SFARG gone_count must say how many gone pods follow it.')
end
local last_gone = 5 + tonumber(gone_count)

local gone, candidate = {}, nil
for i = 6, #ARGV do
  local pod = ARGV[i]
  if not is_pod(pod) or string.find(pod, '^0%d') then
    return redis.error_reply('SFARG gone pods and candidates must be decimal pod ids without leading zeros.')
  end
  if i <= last_gone then
    gone[pod] = true
  elseif not candidate and not gone[pod] then
    candidate = pod
  end
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
local current = redis.pcall('GET', link)
if type(current) == 'table' then return current end
if current and not is_pod(current) then
  return redis.error_reply('SFCORRUPT The link holds something that is not a pod id; repair or delete its key.')
end
local listed = redis.pcall('HEXISTS', hash, service)
if type(listed) == 'table' then
  return redis.error_reply("WRONGTYPE KEYS[2], the uid's hash, is not a hash; repair or delete its key.")
end
local remaining_ms = redis.call('PTTL', link)

local function answer(owner, outcome)
  -- Milliseconds are formatted by hand: Lua's own conversion keeps 14 digits.
  return finish({owner, outcome, current or '-1', string.format('%.0f', redis.call('PTTL', link))})
end

if current and not gone[current] then
  local full_ms = tonumber(persist_seconds)
  full_ms = full_ms and full_ms * 1000
  if mode == 'claim' and persistent and current == candidate and remaining_ms >= 0 then
    redis.call('SET', link, current)
    redis.call('HSET', hash, service, current)
  elseif not persistent and remaining_ms >= 0 and full_ms and remaining_ms * 2 < full_ms then
    redis.call('PEXPIRE', link, string.format('%.0f', full_ms))
  end
  return answer(current, 'kept')
end

if not candidate or (not current and mode == 'move') then
  return answer('-1', 'none')
end
if keep and not current then
  return redis.error_reply("SFARG persist_seconds 'keep' cannot place: there is no link whose kind could be kept.")
end

-- One SET per link, never DEL and EXPIRE: the link is never seen without its value or its expiry.
if persistent or (keep and remaining_ms == -1) then
  redis.call('SET', link, candidate)
  redis.call('HSET', hash, service, candidate)
else
  if keep then
    -- A link in its last millisecond has 0 left, which SET refuses.
    redis.call('SET', link, candidate, 'PX', string.format('%.0f', math.max(remaining_ms, 1)))
  else
    redis.call('SET', link, candidate, 'EX', persist_seconds)
  end
  redis.call('HDEL', hash, service)
end

return answer(candidate, current and 'moved' or 'placed')
