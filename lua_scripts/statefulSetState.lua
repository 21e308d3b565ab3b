-- statefulSetState
--
-- Stores the state of one pod. With stamp 1 it adds the server's clock, so that the state's age can be computed later
-- without the clock of any pod.
--
-- A pod id belongs to one life: one run of a pod's process, named by a random token. The life that started last has the
-- id. A write of an older life is refused, and the reply holds the state of the life that has the id:
--
--   stored state                  | mode 'start' | mode 'beat'
--   ------------------------------+--------------+--------------------------------
--   none, or of no life           | stored       | stored
--   of the same life              | stored       | stored
--   of a life that started before | stored       | stored
--   of a life that started later  | stored       | superseded: nothing is changed
--   of a life after this one      | superseded   | superseded
--
-- A life's state names the lives before it in the field "before", so that a start that was sent again and arrives late
-- does not take the pod id back. Four lives are remembered.
--
-- A gap is a time in which no pod of the service could store a heartbeat: the store was away, or a server with another
-- clock took over. The field "~gap", which no reader takes for a pod, holds three numbers: when the last heartbeat was
-- stored, and when the last gap began and ended. The gap is not counted in the age of any state.
--
-- Access: write
-- KEYS[1] state: hash, sf:{<namespace>:state:<service>}
-- ARGV[1] pod: a pod id, decimal without leading zeros (0 is a pod like any other); or "~empty:" before one, to note,
--   stamped and again every second, that the pod is being emptied: no evacuation moves anybody to it
-- ARGV[2] state: the state, stored as given; with stamp 1 or a life it must be a JSON object
-- ARGV[3] stamp (optional): 1 to set the object's field "at" to the server's clock in milliseconds since 1970,
--   0 (the default) to store the state as given
-- ARGV[4] prune_ms (optional): remove the states of other pods whose field "at" is older than this many milliseconds;
--   0 (the default) removes nothing, and nothing is removed from a hash of more than 10000 fields
-- ARGV[5] life (optional): the token of the writing life, which the state's field "by" must repeat; '' (the default)
--   overwrites any state
-- ARGV[6] mode (optional): with a life, 'start' takes the pod id and sets the object's field "up" to the time of the
--   start, later than that of any earlier life; 'beat' (the default) is for every later write of that life, with the
--   same "up" in the object
-- ARGV[7] gap_ms (optional): mark a gap if no heartbeat was stored for longer than this many milliseconds; 0 (the
--   default) marks none
-- Reply {server_ms, previous}: the server's clock in milliseconds since 1970, a string; the previous state, or nil.
--   With a life, two more strings: 'stored' or 'superseded', and the "up" of the life that now has the pod id
-- Error SFARG: an argument broke its rule; nothing was changed
-- Error WRONGTYPE: the key is not a hash; nothing was changed

-- Redis before 7 may replicate scripts as text, which does not allow reading the clock before a write.
if redis.replicate_commands then redis.replicate_commands() end

local hash, state = KEYS[1], ARGV[2]

-- Programs that share the store read a pod id as an int64. Decimals of equal length compare like numbers.
local function is_pod(text)
  return string.find(text, '^%d+$') and (#text < 19 or #text == 19 and text <= '9223372036854775807')
end

local pod = ARGV[1] or ''
local number = string.gsub(pod, '^~empty:', '')
if not is_pod(number) or string.find(number, '^0%d') then
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
local life = ARGV[5] or ''
local mode = ARGV[6] or 'beat'
if mode ~= 'start' and mode ~= 'beat' then
  return redis.error_reply("SFARG mode must be 'start' or 'beat'.")
end
local gap_ms = ARGV[7] or '0'
if not string.find(gap_ms, '^%d+$') or #gap_ms > 15 then
  return redis.error_reply('SFARG gap_ms must be a whole number of milliseconds.')
end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- A number of milliseconds as text. tostring keeps only 14 digits.
local function in_full(ms)
  return string.format('%.0f', ms)
end
local now = in_full(now_ms)

local function object_of(text)
  local ok, object = pcall(cjson.decode, text)
  if ok and type(object) == 'table' and string.find(text, '^%s*{') then return object end
end

-- When a life started; 0 if its state does not say. Rejects NaN, and values too large to be exact: no clock shows them.
local function up_of(object)
  local up = object.up
  return type(up) == 'number' and math.abs(up) < 9007199254740992 and up or 0
end

-- Writes a number into the text of an object. Decoding and encoding the whole object would turn its empty arrays into
-- objects and round its numbers to 14 digits. Returns nil if the text is not an object, or the field is not a number.
local function with_number(text, name, ms)
  local object = object_of(text)
  local _, brace = string.find(text, '^%s*{')
  if not object then return nil end
  if object[name] == nil then
    local comma = next(object) ~= nil and ',' or ''
    return string.sub(text, 1, brace) .. '"' .. name .. '":' .. in_full(ms) .. comma .. string.sub(text, brace + 1)
  end
  if object[name] == ms then return text end
  -- Quotes inside a string are escaped, so every match is a key of this name, but perhaps in an inner object. The right
  -- match is the one whose change shows in the outer object.
  local from = 1
  while true do
    local _, colon = string.find(text, '"' .. name .. '"%s*:%s*', from)
    if not colon then return nil end
    local _, number = string.find(text, '^-?%d[%d.eE+-]*', colon + 1)
    if number then
      local changed = string.sub(text, 1, colon) .. in_full(ms) .. string.sub(text, number + 1)
      local seen = object_of(changed)
      if seen and seen[name] == ms then return changed end
    end
    from = colon + 1
  end
end

if stamp == '1' then
  state = with_number(state, 'at', now_ms)
  if not state then
    return redis.error_reply('SFARG state must be a JSON object, its field "at" a number or absent, for a stamp.')
  end
end
local mine = life ~= '' and object_of(state)
if life ~= '' and not (mine and mine.by == life) then
  return redis.error_reply('SFARG state must be a JSON object, its field "by" the life, for a life.')
end

local previous = redis.pcall('HGET', hash, pod)
if type(previous) == 'table' then return previous end

local function is_life(token)
  return type(token) == 'string' and #token <= 64 and string.find(token, '^%w[%w_.-]*$')
end

local up = 0
if mine then
  local stored = previous and object_of(previous) or {}
  up = up_of(mine)
  local lives_before = type(stored.before) == 'string' and stored.before or ''
  if mode == 'start' then
    if stored.by ~= life and string.find(' ' .. lives_before .. ' ', ' ' .. life .. ' ', 1, true) then
      return {now, previous, 'superseded', in_full(up_of(stored))}
    end
    -- A start that is sent twice is one start.
    up = stored.by == life and up_of(stored) or 0
    if up == 0 then up = math.max(now_ms, up_of(stored) + 1) end
    state = with_number(state, 'up', up)
    if not state then
      return redis.error_reply('SFARG state must have a number as its field "up", or none.')
    end
  elseif stored.by ~= nil and stored.by ~= life and up_of(stored) > up then
    return {now, previous, 'superseded', in_full(up_of(stored))}
  end
  local kept = {}
  if stored.by ~= life and is_life(stored.by) then kept[1] = stored.by end
  for token in string.gmatch(lives_before, '%S+') do
    if #kept < 4 and is_life(token) and token ~= life then kept[#kept + 1] = token end
  end
  if #kept > 0 and mine.before == nil then
    local _, brace = string.find(state, '^%s*{')
    state = string.sub(state, 1, brace) .. '"before":"' .. table.concat(kept, ' ') .. '",' .. string.sub(state, brace + 1)
  end
end

-- When a state was stored, from any form of stamp; nil without one.
local function stamp_of(text)
  local object = object_of(text)
  if object then return type(object.at) == 'number' and object.at or nil end
  local ms = string.match(text, '^[%d.]+%-(%d+)%-[01]$') or string.match(text, '^[%d.]+%-(%d+)$')
  if ms then return tonumber(ms) end
  local seconds = string.match(text, '^[%d.]+|READY|(%d+)$')
  return seconds and tonumber(seconds) * 1000
end

-- The last heartbeat of all pods, nil if there is none. Programs that mark no gaps write heartbeats too. This reads all
-- states, so it runs only when there seems to be a gap.
local function last_stamp()
  if redis.call('HLEN', hash) > 10000 then return nil end
  local last
  local fields = redis.call('HGETALL', hash)
  for i = 1, #fields, 2 do
    local at = is_pod(fields[i]) and stamp_of(fields[i + 1])
    if at and at == at then last = math.max(last or at, math.min(at, now_ms)) end
  end
  return last
end

if gap_ms ~= '0' then
  local last, from, to = string.match(redis.call('HGET', hash, '~gap') or '', '^(%d+) (%d+) (%d+)$')
  last, from, to = tonumber(last), tonumber(from or 0), tonumber(to or 0)
  local gap = tonumber(gap_ms)
  if not last or now_ms - last > gap then
    local stamp = last_stamp()
    last = math.max(last or 0, stamp or 0)
    if last > 0 and now_ms - last > gap then
      -- Two gaps less than gap_ms apart are one: between them, some pods had no chance to write.
      if to == 0 or last - to > gap then from = last end
      to = now_ms
    end
  end
  -- A clock ahead of this one marked the gap, so its numbers mean nothing here.
  if to > now_ms then from, to = 0, 0 end
  redis.call('HSET', hash, '~gap', now .. ' ' .. in_full(from) .. ' ' .. in_full(to))
end

redis.call('HSET', hash, pod, state)

-- Only states with the field "at" are pruned: a program that writes another form may not write it again soon.
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

if life == '' then return {now, previous} end
return {now, previous, 'stored', in_full(up)}
