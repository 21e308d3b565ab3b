-- statefulReleaseClaim
--
-- Releases a uid for the life of the pod that has it: the link is removed, or stays for a grace period in which the
-- user may come back. Nothing is changed if the link is another pod's, if the claim is another life's, or if this life
-- has claimed the uid again since, with another fence: a late disconnect never removes a newer claim.
--
-- If the link is removed now, the claim record becomes a tombstone, '<fence> - -', for 600 seconds, so that "removed"
-- can be told from "forgotten by the store". With a grace period, the record stays this life's until 600 seconds after
-- it: a user who comes back is claimed with the same fence, unless another life has had the uid.
--
-- With a target, the uid is handed over: its link goes to that pod and stays there for persist_seconds, until that pod
-- claims the uid, and the claim is over.
--
-- A uid that this pod has without a claim (a gateway placed it, or a program that does not know claims linked it) is
-- released as by statefulRemoveLinkWithId.
--
-- Access: write
-- KEYS[1] link: string, sf:{<namespace>:lk:<uid>}<service>
-- KEYS[2] hash: hash, sf:{<namespace>:lk:<uid>}
-- KEYS[3] claim: string, sf:own:{<namespace>:lk:<uid>}<service>; '<fence> <pod> <life>', or '<fence> - -' once ended
-- KEYS[4] op (optional): string, sf:op:{<namespace>:lk:<uid>}:<token>; keeps the reply, so that the
--   same call sent again returns it and changes nothing
-- ARGV[1] service: the service's name, a field of the hash
-- ARGV[2] persist_seconds: -1 to remove the link now, or the seconds (from 1) of its grace period; with a target: -1 for
--   a persistent link to it, or the seconds of a temporary one
-- ARGV[3] pod: a pod id, decimal without leading zeros (0 is a pod like any other)
-- ARGV[4] life: the token of the pod's life, 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit
-- ARGV[5] fence: the fence of the claim to end, a whole number with at most 16 digits; 0 for any claim of this life,
--   or none
-- ARGV[6] op_ms (with KEYS[4]): how long the reply is kept, a whole number of milliseconds; 0 keeps none
-- ARGV[7] target (optional): the pod that has the uid afterwards
-- Reply {released}: 1 if the uid was this life's to release, otherwise 0 and the link is as it was (integers)
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

local persist_seconds = ARGV[2] or ''
local remove_now = persist_seconds == '-1'
if not remove_now
  and not (string.find(persist_seconds, '^[1-9]%d*$') and tonumber(persist_seconds) <= 9007199254740)
then
  return redis.error_reply('SFARG persist_seconds must be -1 or a whole number from 1 to 9007199254740.')
end
local pod = ARGV[3] or ''
if not is_pod(pod) or string.find(pod, '^0%d') then
  return redis.error_reply('SFARG pod must be a decimal pod id without leading zeros.')
end
local life = ARGV[4] or ''
if not string.find(life, '^%w[%w_.-]*$') or #life > 64 then
  return redis.error_reply("SFARG life must be 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit.")
end
local own_fence = ARGV[5] or ''
if own_fence ~= '0'
  and not (string.find(own_fence, '^[1-9]%d*$') and #own_fence <= 16 and tonumber(own_fence) < 9007199254740991)
then
  return redis.error_reply('SFARG fence must be a whole number from 0 to 9007199254740990.')
end

local target = ARGV[7]
if target and (not is_pod(target) or string.find(target, '^0%d')) then
  return redis.error_reply('SFARG target must be a decimal pod id without leading zeros.')
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

local is_this_lifes = claimed_by == pod and claimed_life == life
if not owner and is_this_lifes and (own_fence == '0' or fence == own_fence) then
  -- Somebody has removed the link, or it was evicted: what is left of the claim ends, too.
  redis.call('SET', claim, fence .. ' - -', 'EX', 600)
end
if owner ~= pod
  or claimed_by == pod and not is_this_lifes
  or own_fence ~= '0' and fence and (not is_this_lifes or fence ~= own_fence)
then
  return finish({0})
end

if target then
  -- One SET, never DEL and EXPIRE, so that no reader sees the link without its value or its expiry.
  if remove_now then
    redis.call('SET', link, target)
    redis.call('HSET', hash, service, target)
  else
    redis.call('SET', link, target, 'EX', persist_seconds)
    redis.call('HDEL', hash, service)
  end
  if is_this_lifes then redis.call('SET', claim, fence .. ' - -', 'EX', 600) end
  return finish({1})
end

if remove_now then
  redis.call('DEL', link)
  if is_this_lifes then redis.call('SET', claim, fence .. ' - -', 'EX', 600) end
else
  -- EXPIRE needs the existing key: after a DEL there is nothing to expire, and the user would lose the pod.
  if not linked then redis.call('SET', link, pod) end
  redis.call('EXPIRE', link, persist_seconds)
  if is_this_lifes then redis.call('EXPIRE', claim, string.format('%.0f', tonumber(persist_seconds) + 600)) end
end
redis.call('HDEL', hash, service)

return finish({1})
