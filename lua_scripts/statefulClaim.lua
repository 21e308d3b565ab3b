-- statefulClaim
--
-- Lets one life of a pod (one run of its process) claim a uid: the link becomes persistent, and the claim record names
-- the life and its fence. A fence is a number that grows whenever the uid passes to another pod or another life. A
-- program that writes for the uid elsewhere sends the fence along, so that an older owner's write can be refused there.
--
--   the link is at                                  | outcome
--   ------------------------------------------------+------------------------------------------------------------
--   another pod, persistent or temporary            | refused: nothing is changed
--   this pod or nowhere, the record is this life's  | kept, with its fence: no other life has had the uid since
--   this pod, the record is another life's          | inherited, with a new fence: that life's memory is gone
--   this pod or nowhere, anything else              | placed, with a new fence
--
-- A link that is only in the hash was evicted: it counts as persistent, and is written again. So does one that is only
-- in a claim record without expiry, if the server evicts any key. A claim holds only while
-- the link is persistent and points to the record's pod, so programs that do not know claims need no change.
--
-- A new fence is the server's clock in microseconds, or the last fence + 1 if that is more. So it grows even if the
-- record was lost, as long as the servers' clocks differ by less than the time since the last fence was given.
--
-- Access: write
-- KEYS[1] link: string, sf:{<namespace>:lk:<uid>}<service>
-- KEYS[2] hash: hash, sf:{<namespace>:lk:<uid>}
-- KEYS[3] claim: string, sf:own:{<namespace>:lk:<uid>}<service>; '<fence> <pod> <life>', or '<fence> - -' once ended
-- KEYS[4] op (optional): string, sf:op:{<namespace>:lk:<uid>}:<token>; keeps the reply, so that the
--   same call sent again returns it and changes nothing
-- ARGV[1] service: the service's name, a field of the hash
-- ARGV[2] pod: a pod id, decimal without leading zeros (0 is a pod like any other)
-- ARGV[3] life: the token of the pod's life, 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit
-- ARGV[4] op_ms (with KEYS[4]): how long the reply is kept, a whole number of milliseconds; 0 keeps none
-- Reply {owner, outcome, fence}: three strings: the pod that has the uid afterwards; 'placed', 'kept', 'inherited' or
--   'refused'; the fence of the claim, '0' if it is refused
-- Error SFARG: an argument broke its rule; nothing was changed
-- Error SFCORRUPT: the link, its field in the hash or the claim record holds an invalid value; nothing was changed
-- Error WRONGTYPE: a key is not of the type given above; nothing was changed

-- Redis before 7 may replicate scripts as text, which does not allow reading the clock before a write.
if redis.replicate_commands then redis.replicate_commands() end

local link, hash, claim, service = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
if not service then
  return redis.error_reply('SFARG service, the first argument, is missing.')
end
if not claim then
  return redis.error_reply('SFARG the claim record, the third key, is missing.')
end

-- Programs that share the store read a pod id as an int64. Decimals of equal length compare like numbers.
local function is_pod(text)
  return string.find(text, '^%d+$') and (#text < 19 or #text == 19 and text <= '9223372036854775807')
end

local pod = ARGV[2] or ''
if not is_pod(pod) or string.find(pod, '^0%d') then
  return redis.error_reply('SFARG pod must be a decimal pod id without leading zeros.')
end
local life = ARGV[3] or ''
if not string.find(life, '^%w[%w_.-]*$') or #life > 64 then
  return redis.error_reply("SFARG life must be 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit.")
end

-- A retry of a call that was done returns the first reply.
local op, op_ms = KEYS[4], ARGV[4] or ''
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
-- A server that evicts any key when its memory is full may have evicted link and hash, but not the claim record. One
-- that does not has neither because the link was removed.
local function evicts()
  local memory, stats = redis.pcall('INFO', 'memory'), redis.pcall('INFO', 'stats')
  return type(memory) == 'string' and string.find(memory, 'maxmemory_policy:allkeys', 1, true)
    and type(stats) == 'string' and string.find(stats, 'evicted_keys:[1-9]')
end

if not owner and claimed_life and claimed_by ~= '-' and claimed_by ~= pod
  and redis.call('PTTL', claim) == -1 and evicts()
then
  owner = claimed_by
end
local lasts = linked and redis.call('PTTL', link) == -1

if owner and owner ~= pod then
  return finish({owner, 'refused', '0'})
end

local outcome = 'placed'
if claimed_by == pod then
  if claimed_life == life then
    outcome = 'kept'
  elseif owner then
    outcome = 'inherited'
  end
end

if outcome == 'kept' then
  -- After a release with a grace period, the record was about to expire.
  if redis.call('PTTL', claim) ~= -1 then redis.call('PERSIST', claim) end
else
  local time = redis.call('TIME')
  local new = time[1] * 1000000 + time[2]
  if fence then new = math.max(new, tonumber(fence) + 1) end
  -- string.format, because tostring keeps only 14 digits.
  fence = string.format('%.0f', new)
  redis.call('SET', claim, fence .. ' ' .. pod .. ' ' .. life)
end
-- An inherited claim writes the link again too: the push tells the earlier life, if it still runs.
if not lasts or outcome == 'inherited' then redis.call('SET', link, pod) end
if listed ~= pod then redis.call('HSET', hash, service, pod) end

return finish({pod, outcome, fence})
