-- statefulGetLinkIfPersist
--
-- Reads a uid's link if it is persistent. It is a script because the link could change between a GET and a TTL.
--
-- Access: read
-- KEYS[1] link: string, sf:{<namespace>:lk:<uid>}<service>
-- Reply {pod}: the pod of the persistent link; '-1' if there is no link or it is temporary
-- Error SFCORRUPT: the link holds something that is not a pod id
-- Error WRONGTYPE: the key is not a string

local link = KEYS[1]

-- Programs that share the store read a pod id as an int64. Decimals of equal length compare like numbers.
local function is_pod(text)
  return string.find(text, '^%d+$') and (#text < 19 or #text == 19 and text <= '9223372036854775807')
end

local pod = redis.pcall('GET', link)
if type(pod) == 'table' then return pod end
if pod and not is_pod(pod) then
  return redis.error_reply('SFCORRUPT The link holds something that is not a pod id; repair or delete its key.')
end

if pod and redis.call('PTTL', link) == -1 then
  return {pod}
end
return {'-1'}
