-- statefulGetServicePod
--
-- Reads the state of one pod, and how long ago the pod wrote it.
--
-- The server computes the age, so the clocks of pods and gateways do not matter. The stamp is the field "at"
-- (milliseconds) of a JSON object, or part of one of the older forms <load>-<milliseconds>-<1 or 0>,
-- <load>-<milliseconds> and <load>|READY|<seconds>. A stamp in the future gives age 0. The last gap that
-- statefulSetState has marked, in which no pod of the service could store a heartbeat, does not count.
--
-- Access: read
-- KEYS[1] state: hash, sf:{<namespace>:state:<service>}
-- ARGV[1] pod: the pod's id, a field of the hash
-- Reply {server_ms, state, age_ms}: the server's clock in milliseconds since 1970, a string; the state as stored, or
--   nil; the state's age in milliseconds, '-1' without a stamp, a string
-- Error SFARG: an argument broke its rule
-- Error WRONGTYPE: the key is not a hash

local pod = ARGV[1]
if not pod then
  return redis.error_reply('SFARG pod, the first argument, is missing.')
end
local state = redis.pcall('HGET', KEYS[1], pod)
if type(state) == 'table' then return state end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local gap_from, gap_to = string.match(redis.call('HGET', KEYS[1], '~gap') or '', '^%d+ (%d+) (%d+)$')
gap_from, gap_to = tonumber(gap_from or 0), tonumber(gap_to or 0)

-- When the pod wrote the state, in milliseconds since 1970; nil without a stamp.
local function stamp_of(state)
  if string.find(state, '^%s*{') then
    local ok, object = pcall(cjson.decode, state)
    local at = ok and object.at
    return type(at) == 'number' and at or nil
  end
  local ms = string.match(state, '^[%d.]+%-(%d+)%-[01]$') or string.match(state, '^[%d.]+%-(%d+)$')
  if ms then return tonumber(ms) end
  local seconds = string.match(state, '^[%d.]+|READY|(%d+)$')
  return seconds and tonumber(seconds) * 1000
end

local function age_of(state)
  local stamp = stamp_of(state)
  -- Reject NaN, and values too large to be exact in milliseconds: no clock shows them.
  if not stamp or not (math.abs(stamp) < 9007199254740992) then return '-1' end
  local in_gap = math.max(gap_to - math.max(stamp, gap_from), 0)
  return string.format('%.0f', math.max(now_ms - stamp - in_gap, 0))
end

return {string.format('%.0f', now_ms), state, state and age_of(state) or '-1'}
