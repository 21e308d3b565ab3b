-- statefulGetLinkService
--
-- Reads all persistent links of a uid. Programs that can send commands of their own may as well send HGETALL.
--
-- Access: read
-- KEYS[1] hash: hash, sf:{<namespace>:lk:<uid>}
-- Reply {service, pod, ...}: every persistent link, as two elements each; empty if there is none
-- Error WRONGTYPE: the key is not a hash

return redis.pcall('HGETALL', KEYS[1])
