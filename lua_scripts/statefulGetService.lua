-- statefulGetService
--
-- Reads the states of all pods of a service, and how long ago each pod wrote its own.
--
-- The age is counted here, on the server, so that the clocks of pods and gateways do not matter. The stamp is the
-- field "at" (milliseconds) of a JSON object, or part of one of the older forms <load>-<milliseconds>-<1 or 0>,
-- <load>-<milliseconds> and <load>|READY|<seconds>. A stamp in the future counts as age 0.
--
-- Access: read
-- KEYS[1] state: hash, sf:{<namespace>:state:<service>}
-- ARGV[1] max_fields (optional): refuse a hash of more fields than this; 0 (the default) reads any
-- Reply {server_ms, pod, state, age_ms, ...}: the server's clock in milliseconds since 1970; then for every field of
--   the hash its name, its value as stored, and its age in milliseconds, '-1' if it carries no stamp; all strings
-- Error SFARG: an argument broke its rule
-- Error SFTOOMANY: the hash has more than max_fields fields; reading it would hold up the server
-- Error WRONGTYPE: the key is not a hash

local max_fields = ARGV[1] or '0'
if not string.find(max_fields, '^%d+$') then
  return redis.error_reply('SFARG max_fields must be a whole number.')
end
local length = redis.pcall('HLEN', KEYS[1])
if type(length) == 'table' then return length end
if max_fields ~= '0' and length > tonumber(max_fields) then
  return redis.error_reply('SFTOOMANY The hash has more fields than a service has pods; find out who writes it.')
end

local fields = redis.pcall('HGETALL', KEYS[1])
if fields.err then return fields end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- When the pod wrote the state, in milliseconds since 1970, or nil if the state does not say.
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
  -- Not a clock's value: NaN, or too far off to be exact in milliseconds.
  if not stamp or not (math.abs(stamp) < 9007199254740992) then return '-1' end
  return string.format('%.0f', math.max(now_ms - stamp, 0))
end

local reply = {string.format('%.0f', now_ms)}
for i = 1, #fields, 2 do
  reply[#reply + 1] = fields[i]
  reply[#reply + 1] = fields[i + 1]
  reply[#reply + 1] = age_of(fields[i + 1])
end
return reply
