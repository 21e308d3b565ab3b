-- statefulHandOver
--
-- Takes a uid to another pod without taking it from a pod that serves it: a uid that no pod has claimed is moved, and
-- the pod that has claimed it is asked to let it go. Everything is decided in one atomic step, so a pod that claims the
-- uid meanwhile is either there first, or finds the link at the other pod.
--
--   the link is      | the claim record                  | mode 'away' | mode 'ask' | mode 'force'
--   -----------------+-----------------------------------+-------------+------------+-------------
--   not at this pod  | any                               | elsewhere   | elsewhere  | elsewhere
--   at this pod      | this pod's, a life that goes on   | claimed     | asked      | moved
--   at this pod      | anything else                     | moved       | moved      | moved
--
-- A life goes on unless it is listed as ended. A record with an expiry is that of a user in a grace period, who is away.
-- A moved link keeps its kind and its remaining time. It is not moved to a pod that it was moved off less than settle_ms
-- ago because a caller of a gateway excluded that one (settling).
--
-- A pod is asked by a request beside the link, '<fence> <pod>', for the claim with that fence only; the same request is
-- not prolonged. The claim record is
-- written again with the same content: its pod, which watches the record, is told of that, and looks for a request.
-- Whether it lets the uid go is its own affair: if it does not, the request expires, and the uid stays.
--
-- Access: write
-- KEYS[1] link: string, sf:{<namespace>:lk:<uid>}<service>
-- KEYS[2] hash: hash, sf:{<namespace>:lk:<uid>}
-- KEYS[3] claim: string, sf:own:{<namespace>:lk:<uid>}<service>; '<fence> <pod> <life>', or '<fence> - -' once ended
-- KEYS[4] op (optional): string, sf:op:{<namespace>:lk:<uid>}:<token>; keeps the reply, so that the
--   same call sent again returns it and changes nothing
-- KEYS[5] left: string, sf:op:{<namespace>:lk:<uid>}:left:<service>; the moves noted, as by
--   statefulComputeLinkIfAbsent: '<why>:<from>:<to>:<ms since 1970>', separated by spaces
-- KEYS[6] request: string, sf:op:{<namespace>:lk:<uid>}:to:<service>; '<fence> <pod>', what the pod is asked
-- ARGV[1] service: the service's name, a field of the hash
-- ARGV[2] pod: the pod that has the uid, decimal without leading zeros (0 is a pod like any other)
-- ARGV[3] target: the pod that is to have it
-- ARGV[4] mode: 'away', 'ask' or 'force', as described above
-- ARGV[5] ask_ms: how long a request is kept, a whole number of milliseconds from 1
-- ARGV[6] op_ms: how long the reply is kept in KEYS[4], a whole number of milliseconds; 0 keeps none
-- ARGV[7] settle_ms: for how many milliseconds a link does not come back to an excluded pod; 0: it may at once
-- ARGV[8...] ended (optional): lives of the pod that are over
-- Reply {outcome}: 'moved', 'asked', 'claimed', 'settling' or 'elsewhere' (a string)
-- Error SFARG: an argument broke its rule; nothing was changed
-- Error SFCORRUPT: the link, its field in the hash or the claim record holds an invalid value; nothing was changed
-- Error WRONGTYPE: a key is not of the type given above; nothing was changed

local link, hash, claim, service = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
if not service then
  return redis.error_reply('SFARG service, the first argument, is missing.')
end
if not claim then
  return redis.error_reply('SFARG the claim record, the third key, is missing.')
end
if not KEYS[6] then
  return redis.error_reply('SFARG the request, the sixth key, is missing.')
end

-- Programs that share the store read a pod id as an int64. Decimals of equal length compare like numbers.
local function is_pod(text)
  return string.find(text, '^%d+$') and (#text < 19 or #text == 19 and text <= '9223372036854775807')
end

local pod, target = ARGV[2] or '', ARGV[3] or ''
for _, text in ipairs({pod, target}) do
  if not is_pod(text) or string.find(text, '^0%d') then
    return redis.error_reply('SFARG pod and target must be decimal pod ids without leading zeros.')
  end
end
local mode = ARGV[4]
if mode ~= 'away' and mode ~= 'ask' and mode ~= 'force' then
  return redis.error_reply("SFARG mode must be 'away', 'ask' or 'force'.")
end
local ask_ms = ARGV[5] or ''
if not (string.find(ask_ms, '^[1-9]%d*$') and #ask_ms <= 15) then
  return redis.error_reply('SFARG ask_ms must be a whole number of milliseconds from 1, with at most 15 digits.')
end
local settle_ms = ARGV[7] or ''
if not (string.find(settle_ms, '^%d+$') and #settle_ms <= 15) then
  return redis.error_reply('SFARG settle_ms must be a whole number of milliseconds, with at most 15 digits.')
end
local ended = {}
for i = 8, #ARGV do
  local life = ARGV[i]
  if not string.find(life, '^%w[%w_.-]*$') or #life > 64 then
    return redis.error_reply("SFARG life must be 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit.")
  end
  ended[life] = true
end

-- A retry of a call that was done returns the first reply.
local op, op_ms = KEYS[4], ARGV[6] or ''
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
local linked = redis.pcall('GET', link)
if type(linked) == 'table' then return linked end
local listed = redis.pcall('HGET', hash, service)
if type(listed) == 'table' then
  return redis.error_reply("WRONGTYPE KEYS[2], the uid's hash, is not a hash; repair or delete its key.")
end
-- A link that is only in the hash was evicted.
local owner = linked or listed
if owner and not is_pod(owner) then
  return redis.error_reply('SFCORRUPT The link holds something that is not a pod id; repair or delete its key.')
end
local record = redis.pcall('GET', claim)
if type(record) == 'table' then
  return redis.error_reply('WRONGTYPE KEYS[3], the claim record, is not a string; repair or delete its key.')
end
local fence, claimed_by, claimed_life
if record then
  fence, claimed_by, claimed_life = string.match(record, '^([1-9]%d*) (%S+) (%S+)$')
  if not fence or #fence > 16 or tonumber(fence) >= 9007199254740991
    or not (claimed_by == '-' and claimed_life == '-' or is_pod(claimed_by) and claimed_life ~= '-')
  then
    return redis.error_reply('SFCORRUPT The claim record holds something else; repair or delete its key.')
  end
end
local noted, asked = redis.pcall('GET', KEYS[5]), redis.pcall('GET', KEYS[6])
if type(noted) == 'table' then return noted end
if type(asked) == 'table' then return asked end

if owner ~= pod or target == pod then return finish({'elsewhere'}) end
if noted then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  for from, at in string.gmatch(noted, 'excluded:(%d+):%d+:(%d+)') do
    -- After a failover the clock may be behind: then it was just now.
    if from == target and math.max(0, now - tonumber(at)) < tonumber(settle_ms) then return finish({'settling'}) end
  end
end

local remaining_ms = linked and redis.call('PTTL', link) or -1
local is_claimed = claimed_by == pod and not ended[claimed_life] and remaining_ms == -1
  and redis.call('PTTL', claim) == -1
if is_claimed and mode == 'away' then return finish({'claimed'}) end
if is_claimed and mode == 'ask' then
  -- A pod that is asked again for the same need not be told a second time.
  local request = fence .. ' ' .. target
  if asked ~= request then redis.call('SET', KEYS[6], request, 'PX', ask_ms) end
  redis.call('SET', claim, record)
  return finish({'asked'})
end

-- One SET, never DEL and EXPIRE, so that no reader sees the link without its value or its expiry.
if remaining_ms == -1 then
  redis.call('SET', link, target)
  redis.call('HSET', hash, service, target)
else
  -- A link in its last millisecond has 0 ms left, and SET refuses 0.
  redis.call('SET', link, target, 'PX', string.format('%.0f', math.max(remaining_ms, 1)))
  if listed then redis.call('HDEL', hash, service) end
end

return finish({'moved'})
