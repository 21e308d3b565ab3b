-- statefulGetService
--
-- Reads the states of all pods of a service, and how long ago each pod wrote its own.
--
-- The server computes the age, so the clocks of pods and gateways do not matter. The stamp is the field "at"
-- (milliseconds) of a JSON object, or part of one of the older forms <load>-<milliseconds>-<1 or 0>,
-- <load>-<milliseconds> and <load>|READY|<seconds>. A stamp in the future gives age 0. The last gap that
-- statefulSetState has marked, in which no pod of the service could store a heartbeat, does not count.
--
-- Access: read
-- KEYS[1] state: hash, sf:{<namespace>:state:<service>}
-- ARGV[1] max_fields (optional): refuse a hash of more fields than this; 0 (the default) sets no limit
-- ARGV[2] max_bytes (optional): if all states together take more bytes than this, shorten each that takes more than its
--   share: a JSON object loses the application's fields, any other text is cut; 0 (the default) sets no limit. A hash
--   that takes more than four times as much is refused: what is shortened has to be read first
-- Reply {server_ms, pod, state, age_ms, ...}: the server's clock in milliseconds since 1970; then, for every field of
--   the hash except "~gap", its name, its value as stored, and its age in milliseconds, '-1' without a stamp; all
--   strings
-- Error SFARG: an argument broke its rule
-- Error SFTOOMANY: the hash has more than max_fields fields; reading it would block the server
-- Error SFTOOLARGE: the hash has more than four times max_bytes bytes; reading it does block the server
-- Error WRONGTYPE: the key is not a hash

local max_fields = ARGV[1] or '0'
if not string.find(max_fields, '^%d+$') then
  return redis.error_reply('SFARG max_fields must be a whole number.')
end
local max_bytes = ARGV[2] or '0'
if not string.find(max_bytes, '^%d+$') or #max_bytes > 15 then
  return redis.error_reply('SFARG max_bytes must be a whole number.')
end
local length = redis.pcall('HLEN', KEYS[1])
if type(length) == 'table' then return length end
local note = redis.call('HGET', KEYS[1], '~gap')
if note then length = length - 1 end
if max_fields ~= '0' and length > tonumber(max_fields) then
  return redis.error_reply('SFTOOMANY The hash has more fields than a service has pods; find out who writes it.')
end

local fields = redis.pcall('HGETALL', KEYS[1])
if fields.err then return fields end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local gap_from, gap_to = string.match(note or '', '^%d+ (%d+) (%d+)$')
gap_from, gap_to = tonumber(gap_from or 0), tonumber(gap_to or 0)

-- The fields of a JSON object; nil for any other state.
local function object_of(state)
  if not string.find(state, '^%s*{') then return nil end
  local ok, object = pcall(cjson.decode, state)
  return ok and type(object) == 'table' and object or nil
end

-- When the pod wrote the state, in milliseconds since 1970; nil without a stamp.
local function stamp_of(state, object)
  if object then
    return type(object.at) == 'number' and object.at or nil
  end
  local ms = string.match(state, '^[%d.]+%-(%d+)%-[01]$') or string.match(state, '^[%d.]+%-(%d+)$')
  if ms then return tonumber(ms) end
  local seconds = string.match(state, '^[%d.]+|READY|(%d+)$')
  return seconds and tonumber(seconds) * 1000
end

local function age_of(state, object)
  local stamp = stamp_of(state, object)
  -- Reject NaN, and values too large to be exact in milliseconds: no clock shows them.
  if not stamp or not (math.abs(stamp) < 9007199254740992) then return '-1' end
  local in_gap = math.max(gap_to - math.max(stamp, gap_from), 0)
  return string.format('%.0f', math.max(now_ms - stamp - in_gap, 0))
end

local bytes = 0
for i = 1, #fields do
  bytes = bytes + #fields[i]
end
local share
if max_bytes ~= '0' and bytes > tonumber(max_bytes) then
  if bytes > 4 * tonumber(max_bytes) then
    return redis.error_reply('SFTOOLARGE The hash has more bytes than the states of a service; find out who writes it.')
  end
  share = math.floor(tonumber(max_bytes) / math.max(length, 1))
end

-- The fields that routing needs of a JSON object; any other text is cut to its share.
local function shortened(state, object)
  if object then
    local kept = {}
    for _, name in ipairs({'status', 'load', 'at', 'up', 'by', 'lease', 'capacity', 'drain', 'address', 'confirmed',
      'before', 'room', 'max_claims'}) do
      local value = object[name]
      if type(value) == 'number' or type(value) == 'boolean' or type(value) == 'string' and #value <= 2048 then
        kept[name] = value
      end
    end
    -- Readers accept 16 labels of 192 bytes; quotes and escapes included, that is less than this.
    local labels = type(object.labels) == 'table' and next(object.labels) and cjson.encode(object.labels)
    if labels and #labels <= 8192 then kept.labels = object.labels end
    return cjson.encode(kept)
  end
  return string.sub(state, 1, share)
end

local reply = {string.format('%.0f', now_ms)}
for i = 1, #fields, 2 do
  local field, state = fields[i], fields[i + 1]
  -- A name longer than any pod id is not a pod.
  if field ~= '~gap' and not (share and #field > 19) then
    local object = object_of(state)
    local age = age_of(state, object)
    if share and #state > share then
      state = shortened(state, object)
    end
    reply[#reply + 1] = field
    reply[#reply + 1] = state
    reply[#reply + 1] = age
  end
end
return reply
