-- statefulGetLinkService
--
-- Reads all persistent links of a uid. A plain HGETALL does the same.
--
-- Access: read
-- KEYS[1] hash: hash, sf:{<namespace>:lk:<uid>}
-- Reply {service, pod, ...}: two elements for each persistent link; empty if there is none
-- Error WRONGTYPE: the key is not a hash

return redis.pcall('HGETALL', KEYS[1])
