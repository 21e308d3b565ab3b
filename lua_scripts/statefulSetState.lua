-- statefulSetState
--
-- Stores the state of one pod. With stamp it adds the server's clock, so that the state's age can be told later
-- without trusting the clock of any pod.
--
-- Access: write
-- KEYS[1] state: hash, sf:{<namespace>:state:<service>}
-- ARGV[1] pod: a pod id, decimal without leading zeros (0 is a pod like any other)
-- ARGV[2] state: the state, stored as given; a JSON object with stamp 1
-- ARGV[3] stamp (optional): 1 to set the object's field "at" to the server's clock in milliseconds since 1970,
--   0 (the default) to store the state as given
-- ARGV[4] prune_ms (optional): remove the states of other pods whose field "at" is older than this many milliseconds;
--   0 (the default) removes nothing, and nothing is removed from a hash of more than 10000 fields
-- Reply {server_ms, previous}: the server's clock in milliseconds since 1970, a string; the state before, or nil
-- Error SFARG: an argument broke its rule; nothing was changed
-- Error WRONGTYPE: the key is not a hash; nothing was changed

-- Redis before 7 may be set to replicate scripts as text, which forbids to read the clock before a write.
if redis.replicate_commands then redis.replicate_commands() end

local hash, state = KEYS[1], ARGV[2]

-- A pod id is an int64 to the programs that share the store. Digits of one length compare like their numbers.
local function is_pod(text)
  return string.find(text, '^%d+$') and (#text < 19 or #text == 19 and text <= '9223372036854775807')
end

local pod = ARGV[1] or ''
if not is_pod(pod) or string.find(pod, '^0%d') then
  return redis.error_reply('SFARG pod must be a decimal pod id without leading zeros.')
end
if not state then
  return redis.error_reply('SFARG state, the second argument, is missing.')
end
local stamp = ARGV[3] or '0'
if stamp ~= '0' and stamp ~= '1' then
  return redis.error_reply('SFARG stamp must be 0 or 1.')
end
local prune_ms = ARGV[4] or '0'
if not string.find(prune_ms, '^%d+$') or #prune_ms > 15 then
  return redis.error_reply('SFARG prune_ms must be a whole number of milliseconds.')
end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%.0f', now_ms)

-- The stamp is put into the text. Decoding and encoding the whole object would turn its empty arrays into objects and
-- round its numbers to 14 digits. Returns nil if the text is not an object or its "at" is not a number.
local function with_stamp(text)
  local ok, object = pcall(cjson.decode, text)
  local _, brace = string.find(text, '^%s*{')
  if not ok or not brace then return nil end
  if object.at == nil then
    local comma = next(object) ~= nil and ',' or ''
    return string.sub(text, 1, brace) .. '"at":' .. now .. comma .. string.sub(text, brace + 1)
  end
  if object.at == now_ms then return text end
  -- Inside a string its quotes would be escaped, so every match is a key "at", though perhaps one of an inner
  -- object: the right one is the one whose change is seen in the object.
  local from = 1
  while true do
    local _, colon = string.find(text, '"at"%s*:%s*', from)
    if not colon then return nil end
    local _, number = string.find(text, '^-?%d[%d.eE+-]*', colon + 1)
    if number then
      local changed = string.sub(text, 1, colon) .. now .. string.sub(text, number + 1)
      local fine, seen = pcall(cjson.decode, changed)
      if fine and seen.at == now_ms then return changed end
    end
    from = colon + 1
  end
end

if stamp == '1' then
  state = with_stamp(state)
  if not state then
    return redis.error_reply('SFARG state must be a JSON object, its field "at" a number or absent, for a stamp.')
  end
end

local previous = redis.pcall('HGET', hash, pod)
if type(previous) == 'table' then return previous end
redis.call('HSET', hash, pod, state)

-- Only states with our own stamp are judged: whoever writes another form may not mean to write it again soon.
if prune_ms ~= '0' and redis.call('HLEN', hash) <= 10000 then
  local fields = redis.call('HGETALL', hash)
  for i = 1, #fields, 2 do
    local ok, object = pcall(cjson.decode, fields[i + 1])
    local at = ok and type(object) == 'table' and object.at
    if fields[i] ~= pod and type(at) == 'number' and at < now_ms - prune_ms then
      redis.call('HDEL', hash, fields[i])
    end
  end
end

return {now, previous}
