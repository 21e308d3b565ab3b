-- statefulTakePod
--
-- Gives a life of a pod (one run of its process) a pod id: the one that it had before, if it says its name, else the
-- lowest one that is free. The id is taken by a state, so two lives that ask at once get two ids.
--
--   the state of an id                                        | the id is
--   ----------------------------------------------------------+----------------------------------------------------
--   none                                                      | free
--   of this very life                                         | this life's: the call was sent twice
--   with this name                                            | this life's: an earlier one had it, whatever it says
--   Stopped, Failed                                           | free
--   older than its lease (or silent_ms, without one) + margin | free: gateways consider the pod dead
--   anything else                                             | taken
--
-- Ages are counted as statefulGetService does: a time in which no pod of the service could store a heartbeat is left
-- out, or a life that starts after an outage would take the id of a living pod.
--
-- The state says Pending until the life's first heartbeat replaces it, which must carry the same life.
--
-- Access: write
-- KEYS[1] state: hash, sf:{<namespace>:state:<service>}
-- ARGV[1] life: the token of the life, 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit
-- ARGV[2] name: what the life is called, and was before a restart; '' if it has no name
-- ARGV[3] silent_ms: after how many milliseconds of silence a pod without a lease counts as dead
-- ARGV[4] margin_ms: how many milliseconds gateways outwait a lease
-- Reply {pod}: the pod id, a string
-- Error SFARG: an argument broke its rule; nothing was changed
-- Error SFTOOMANY: the hash has more than 10000 fields; nothing was changed
-- Error WRONGTYPE: the key is not a hash; nothing was changed

-- Redis before 7 may replicate scripts as text, which does not allow reading the clock before a write.
if redis.replicate_commands then redis.replicate_commands() end

local hash, life, name = KEYS[1], ARGV[1] or '', ARGV[2]
if not string.find(life, '^%w[%w_.-]*$') or #life > 64 then
  return redis.error_reply("SFARG life must be 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit.")
end
if not name or #name > 255 then
  return redis.error_reply('SFARG name must be a text of at most 255 bytes.')
end
local silent_ms, margin_ms = ARGV[3] or '', ARGV[4] or ''
for _, number in ipairs({silent_ms, margin_ms}) do
  if not string.find(number, '^%d+$') or #number > 15 then
    return redis.error_reply('SFARG silent_ms and margin_ms must be whole numbers of milliseconds.')
  end
end

local length = redis.pcall('HLEN', hash)
if type(length) == 'table' then return length end
if length > 10000 then
  return redis.error_reply('SFTOOMANY The hash has more fields than a service has pods; find out who writes it.')
end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local gap_from, gap_to = string.match(redis.call('HGET', hash, '~gap') or '', '^%d+ (%d+) (%d+)$')
gap_from, gap_to = tonumber(gap_from or 0), tonumber(gap_to or 0)

-- Programs that share the store read a pod id as an int64; one that is as long is taken by nobody here.
local function is_pod(text)
  return string.find(text, '^%d+$') and #text < 16 and not string.find(text, '^0%d')
end

local function number_of(value)
  return type(value) == 'number' and math.abs(value) < 9007199254740992 and value or nil
end

local function is_free(text, object)
  if text == 'Stopped' or text == 'Failed' or string.find(text, '^[%d.]+%-%d+%-0$') then return true end
  if not object then return false end
  if object.status == 'Stopped' or object.status == 'Failed' then return true end
  local at, lease = number_of(object.at), number_of(object.lease)
  if not at then return false end
  local age = now_ms - at - math.max(gap_to - math.max(at, gap_from), 0)
  local allowed = lease and lease > 0 and lease + tonumber(margin_ms) or tonumber(silent_ms)
  return age > allowed
end

-- The lowest id of each kind.
local own, up, taken = nil, 0, {}
local fields = redis.call('HGETALL', hash)
for i = 1, #fields, 2 do
  if is_pod(fields[i]) then
    local pod, text = tonumber(fields[i]), fields[i + 1]
    local ok, object = pcall(cjson.decode, text)
    if not (ok and type(object) == 'table' and string.find(text, '^%s*{')) then object = nil end
    if object and object.by == life then return {fields[i]} end
    if object and name ~= '' and object.name == name and not (own and own < pod) then own = pod end
    if not is_free(text, object) then taken[pod] = true end
    up = math.max(up, object and number_of(object.up) or 0)
  end
end

local pod = own
if not pod then
  pod = 0
  while taken[pod] do pod = pod + 1 end
end

-- Later than any life of this service, and so than the one that had the id. string.format keeps all digits.
up = math.max(now_ms, up + 1)
local state = {'"status":"Pending","by":' .. cjson.encode(life)}
if name ~= '' then state[#state + 1] = '"name":' .. cjson.encode(name) end
state[#state + 1] = string.format('"at":%.0f,"up":%.0f', now_ms, up)
pod = string.format('%.0f', pod)
redis.call('HSET', hash, pod, '{' .. table.concat(state, ',') .. '}')
return {pod}
