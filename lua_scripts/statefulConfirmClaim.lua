-- statefulConfirmClaim
--
-- Tells one life of a pod whether it still holds a claim, and restores what the store has lost of it. A pod asks
-- whenever it may have missed something: after a push that the link has changed, after a lost connection, and at
-- intervals.
--
--   the link is at       | the claim record       | outcome
--   ---------------------+------------------------+----------------------------------------------------------
--   this pod, persistent | none, or older         | restored: the record is written again
--                        | this life's            | mine
--                        | another life's         | superseded
--                        | over, or another pod's | removed: something has ended the claim since
--   nowhere, temporary   | none, or older         | claimed: the store forgot the claim; it is made again
--                        | another life's         | superseded
--                        | anything else          | removed
--   nowhere, on a server | this life's            | restored
--   that evicts any key  |                        |
--   another pod          | its claim, but older   | claimed: the store forgot, and an older claim came first
--                        | anything else          | moved
--
-- A record is older if its fence is less than the claim's: the store has lost a later state, in a failover or a restart
-- without its data. A link that is only in the hash was evicted: it counts as persistent, and is written again
-- (restored). A claim that is mine, restored or claimed keeps its fence, since no other life has had the uid.
--
-- There is no operation record: a repeated call finds what the first one wrote.
--
-- Access: write
-- KEYS[1] link: string, sf:{<namespace>:lk:<uid>}<service>
-- KEYS[2] hash: hash, sf:{<namespace>:lk:<uid>}
-- KEYS[3] claim: string, sf:own:{<namespace>:lk:<uid>}<service>; '<fence> <pod> <life>', or '<fence> - -' once ended
-- ARGV[1] service: the service's name, a field of the hash
-- ARGV[2] pod: a pod id, decimal without leading zeros (0 is a pod like any other)
-- ARGV[3] life: the token of the pod's life, 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit
-- ARGV[4] fence: the fence of the claim, a whole number from 1 with at most 16 digits
-- Reply {owner, outcome, fence}: three strings: the pod that has the uid afterwards, '-1' without a link; 'mine',
--   'restored', 'claimed', 'superseded', 'moved' or 'removed'; the fence of the claim, '0' if it is lost
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
local own_fence = ARGV[4] or ''
if not string.find(own_fence, '^[1-9]%d*$') or #own_fence > 16 or tonumber(own_fence) >= 9007199254740991 then
  return redis.error_reply('SFARG fence must be a whole number from 1 to 9007199254740990.')
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
local remaining_ms = redis.call('PTTL', link)
local persistent = owner and (not linked or remaining_ms == -1)

-- A server that evicts any key when its memory is full may have evicted link and hash, but not the claim record. One
-- that does not has neither because the link was removed.
local function evicts()
  local memory, stats = redis.pcall('INFO', 'memory'), redis.pcall('INFO', 'stats')
  return type(memory) == 'string' and string.find(memory, 'maxmemory_policy:allkeys', 1, true)
    and type(stats) == 'string' and string.find(stats, 'evicted_keys:[1-9]')
end

local is_older = not fence or tonumber(fence) < tonumber(own_fence)
local is_this_lifes = claimed_by == pod and claimed_life == life

local function outcome_of_claim()
  if owner and owner ~= pod then
    return persistent and claimed_by == owner and is_older and 'claimed' or 'moved'
  elseif is_older then
    return persistent and 'restored' or 'claimed'
  elseif claimed_by == pod and claimed_life ~= life then
    return 'superseded'
  elseif not is_this_lifes or not persistent then
    return is_this_lifes and not owner and evicts() and 'restored' or 'removed'
  end
  return linked and 'mine' or 'restored'
end

local outcome = outcome_of_claim()

if outcome == 'moved' or outcome == 'removed' or outcome == 'superseded' then
  if is_this_lifes and outcome == 'removed' and owner then
    -- A grace period: a user who comes back within it is still this life's.
    redis.call('PEXPIRE', claim, string.format('%.0f', remaining_ms + 600000))
  elseif is_this_lifes then
    redis.call('SET', claim, fence .. ' - -', 'EX', 600)
  end
  return {owner or '-1', outcome, '0'}
end

if is_older then
  fence = own_fence
  redis.call('SET', claim, fence .. ' ' .. pod .. ' ' .. life)
elseif redis.call('PTTL', claim) ~= -1 then
  redis.call('PERSIST', claim)
end
-- A claim taken from another life writes the link again too: the push tells that life, if it still runs.
if linked ~= pod or not persistent or claimed_by == pod and not is_this_lifes then redis.call('SET', link, pod) end
if listed ~= pod then redis.call('HSET', hash, service, pod) end

return {pod, outcome, fence}
