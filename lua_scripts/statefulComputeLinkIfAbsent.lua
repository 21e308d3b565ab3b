-- statefulComputeLinkIfAbsent
--
-- Finds a uid's link, places the uid, or moves it off a pod that is gone, in one atomic step: however many
-- gateways decide at once, one decision wins and all of them get the same owner. The states of the pods live in another
-- slot, which this script cannot read. So the caller says which pods are gone, and which pods it would choose, best
-- first.
--
--   link                 | a candidate is left      | none is left
--   ---------------------+--------------------------+-------------
--   to a pod not gone    | kept                     | kept
--   to a gone pod        | moved                    | none
--   none, mode 'place'   | placed                   | none
--   none, mode 'move'    | none                     | none
--
-- Mode 'leave' works like 'place', but off a gone pod it moves only a temporary link: one that has become persistent
-- meanwhile is kept.
--
-- A pod accepts a uid in mode 'claim'. It works like 'place'; also, with persist_seconds -1, a temporary link to the
-- first candidate becomes persistent. A link to another pod is kept as it is.
--
-- A move of mode 'place' or 'leave' is noted in KEYS[4] for ten minutes: why, from where, where to, and when. Why is
-- 'gone' (or full, by what the pods say), 'away' (mode 'leave'), or 'excluded' (settle: only a caller says so).
--
-- Callers that each exclude another pod must not move a link to and fro. So with settle a candidate is skipped that the
-- link was moved off as excluded less than settle milliseconds ago. And there is no third such move within a minute,
-- unless the caller has excluded all pods that the link left in that minute, as one does who goes from pod to pod.
--
-- If the hash differs from the link it is put right. If the hash has a link that is not there, the link's key was
-- evicted: it is restored. So is one that is only in a claim record without expiry, if the server evicts any key.
--
-- A kept temporary link is extended to persist_seconds once less than half of that time remains. It is not extended at
-- every call, because each new expiry sends an invalidation to every gateway that caches the link.
--
-- Access: write
-- KEYS[1] link: string, sf:{<namespace>:lk:<uid>}<service>
-- KEYS[2] hash: hash, sf:{<namespace>:lk:<uid>}
-- KEYS[3] op (optional): string, sf:op:{<namespace>:lk:<uid>}:<token>; keeps the reply, so that the
--   same call sent again returns it and changes nothing
-- KEYS[4] left (optional; with settle it must be there): string, sf:op:{<namespace>:lk:<uid>}:left:<service>; the moves
--   noted, newest first: '<why>:<from>:<to>:<ms since 1970>', separated by spaces
-- KEYS[5] claim (optional): string, sf:own:{<namespace>:lk:<uid>}<service>; '<fence> <pod> <life>', or '<fence> - -'
--   once ended
-- ARGV[1] service: the service's name, a field of the hash
-- ARGV[2] persist_seconds: -1 for a persistent link, the seconds (from 1) of a temporary one, or 'keep' to move a link
--   with its persistence and remaining time ('keep' cannot place)
-- ARGV[3] mode: 'place' to link a uid that has no link, 'move' to leave it without one, 'leave' and 'claim' as
--   described above
-- ARGV[4] op_ms: how long the reply is kept in KEYS[3], a whole number of milliseconds; 0 keeps none
-- ARGV[5] gone_count: how many gone pods follow
-- ARGV[6...] gone: the ids of the pods that are gone, as many as gone_count says
-- ARGV[...] candidates: the ids of the pods to choose from, best first; gone pods among them are skipped
-- ARGV[...] settle (optional): the word 'settle', and for how many milliseconds a link does not come back, from 1
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

-- Programs that share the store read a pod id as an int64. Decimals of equal length compare like numbers.
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
if mode ~= 'place' and mode ~= 'move' and mode ~= 'claim' and mode ~= 'leave' then
  return redis.error_reply("SFARG mode must be 'place', 'move', 'leave' or 'claim'.")
end
local gone_count = ARGV[5] or ''
if not string.find(gone_count, '^%d+$') or tonumber(gone_count) > #ARGV - 5 then
  return redis.error_reply('SFARG gone_count must say how many gone pods follow it.')
end
local last_gone = 5 + tonumber(gone_count)

local last, left, settle_ms = #ARGV, KEYS[4], nil
if ARGV[last - 1] == 'settle' then
  settle_ms = ARGV[last]
  last = last - 2
  if not left or last < last_gone or not (string.find(settle_ms, '^[1-9]%d*$') and #settle_ms <= 15) then
    return redis.error_reply('SFARG settle must be a whole number of milliseconds from 1, and KEYS[4] be there.')
  end
end

local gone, candidates = {}, {}
for i = 6, last do
  local pod = ARGV[i]
  if not is_pod(pod) or string.find(pod, '^0%d') then
    return redis.error_reply('SFARG gone pods and candidates must be decimal pod ids without leading zeros.')
  end
  if i <= last_gone then
    gone[pod] = true
  elseif not gone[pod] then
    candidates[#candidates + 1] = pod
  end
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
local current = redis.pcall('GET', link)
if type(current) == 'table' then return current end
if current and not is_pod(current) then
  return redis.error_reply('SFCORRUPT The link holds something that is not a pod id; repair or delete its key.')
end
local is_listed = redis.pcall('HEXISTS', hash, service)
if type(is_listed) == 'table' then
  return redis.error_reply("WRONGTYPE KEYS[2], the uid's hash, is not a hash; repair or delete its key.")
end
-- The two keys of a link can be evicted one by one, or written by other means. What the hash says, nil if nothing. It is
-- read only where it decides something: the hash of a uid may list many services.
local listed
if is_listed == 1 and (not current or not gone[current] or mode == 'leave') then
  local services = redis.call('HGETALL', hash)
  for i = 1, #services, 2 do
    if services[i] == service then listed = services[i + 1] end
  end
end
-- A decision of a gateway is noted. An evacuation would leave as many notes as there are links.
local is_noted = left and (mode == 'place' or mode == 'leave') and gone[current or listed or '']
local noted, now = '', 0
if is_noted then
  noted = redis.pcall('GET', left) or ''
  if type(noted) == 'table' then return noted end
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local skipped, in_a_minute, goes_on = {}, 0, true
if settle_ms then
  for from, at in string.gmatch(noted, 'excluded:(%d+):%d+:(%d+)') do
    -- After a failover the clock may be behind: then it was just now.
    local ago = math.max(0, now - tonumber(at))
    if ago < tonumber(settle_ms) then skipped[from] = true end
    if ago < 60000 then
      in_a_minute = in_a_minute + 1
      goes_on = goes_on and gone[from]
    end
  end
end
local candidate
for _, pod in ipairs(candidates) do
  if not candidate and not skipped[pod] and (in_a_minute < 2 or goes_on) then candidate = pod end
end
if not current and listed and is_pod(listed) then
  -- The link was persistent, and its string was evicted.
  redis.call('SET', link, listed)
  current = listed
end

-- A server that evicts any key when its memory is full may have evicted link and hash, but not the claim record. One
-- that does not has neither because the link was removed.
local function evicts()
  local memory, stats = redis.pcall('INFO', 'memory'), redis.pcall('INFO', 'stats')
  return type(memory) == 'string' and string.find(memory, 'maxmemory_policy:allkeys', 1, true)
    and type(stats) == 'string' and string.find(stats, 'evicted_keys:[1-9]')
end

-- The pod that has claimed the uid, nil if none.
local function claimed_by()
  local record = KEYS[5] and redis.pcall('GET', KEYS[5])
  local pod = type(record) == 'string' and string.match(record, '^[1-9]%d* (%d+) %S+$')
  return pod and is_pod(pod) and redis.call('PTTL', KEYS[5]) == -1 and pod
end

if not current and not listed then
  local claimer = claimed_by()
  if claimer and evicts() then
    redis.call('SET', link, claimer)
    current = claimer
  end
end
local remaining_ms = redis.call('PTTL', link)

local function answer(owner, outcome)
  -- string.format, because tostring keeps only 14 digits.
  if is_noted and outcome == 'moved' then
    local why = settle_ms and 'excluded' or mode == 'leave' and 'away' or 'gone'
    local note = string.format('%s:%s:%s:%.0f', why, current, owner, now)
    redis.call('SET', left, string.sub(note .. ' ' .. noted, 1, 1000), 'PX', 600000)
  end
  return finish({owner, outcome, current or '-1', string.format('%.0f', redis.call('PTTL', link))})
end

if current and (not gone[current] or mode == 'leave' and remaining_ms == -1) then
  local full_ms = tonumber(persist_seconds)
  full_ms = full_ms and full_ms * 1000
  if mode == 'claim' and persistent and current == candidate and remaining_ms >= 0 then
    redis.call('SET', link, current)
    remaining_ms = -1
  elseif not persistent and remaining_ms >= 0 and full_ms and remaining_ms * 2 < full_ms then
    redis.call('PEXPIRE', link, string.format('%.0f', full_ms))
  end
  if remaining_ms == -1 and listed ~= current then
    redis.call('HSET', hash, service, current)
  elseif remaining_ms >= 0 and listed then
    redis.call('HDEL', hash, service)
  end
  return answer(current, 'kept')
end

if not candidate or (not current and mode == 'move') then
  return answer('-1', 'none')
end
if keep and not current then
  return redis.error_reply("SFARG persist_seconds 'keep' cannot place: there is no link whose kind could be kept.")
end

-- One SET per link, never DEL and EXPIRE, so that no reader sees the link without its value or its expiry.
if persistent or (keep and remaining_ms == -1) then
  redis.call('SET', link, candidate)
  redis.call('HSET', hash, service, candidate)
else
  if keep then
    -- A link in its last millisecond has 0 ms left, and SET refuses 0.
    redis.call('SET', link, candidate, 'PX', string.format('%.0f', math.max(remaining_ms, 1)))
  else
    redis.call('SET', link, candidate, 'EX', persist_seconds)
  end
  redis.call('HDEL', hash, service)
end

return answer(candidate, current and 'moved' or 'placed')
