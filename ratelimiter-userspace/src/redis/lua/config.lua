-- config: the configuration that the fleet shares. What is decided is in src/sync/config.rs.
--
-- KEYS  the configuration: a hash of head and body
-- ARGV  the head that the caller knows or expects, empty for none; to write, also a new head and body
-- answer  whether it was written (1 or 0), the head in force, and the body unless the caller has it
local key = KEYS[1]
local kind = redis.call('TYPE', key)['ok']
if kind ~= 'none' and (kind ~= 'hash' or redis.call('HSTRLEN', key, 'head') > 128) then
  redis.call('DEL', key)
end
local head = redis.call('HGET', key, 'head') or ''
if ARGV[2] and head == ARGV[1] then
  redis.call('HSET', key, 'head', ARGV[2], 'body', ARGV[3])
  redis.call('PERSIST', key)
  return { 1, ARGV[2], '' }
end
if head == ARGV[1] then return { 0, head, '' } end
-- No host writes more than 32 MiB; whoever gets none of it finds that the head does not fit.
if redis.call('HSTRLEN', key, 'body') > 33554432 then return { 0, head, '' } end
return { 0, head, redis.call('HGET', key, 'body') or '' }
