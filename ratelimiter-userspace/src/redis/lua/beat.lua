-- beat: a host lives; who else does, and which sources became hot. See src/sync/ledger/hosts.rs.
--
-- KEYS  the hosts, the hot sources: sorted sets by time
-- ARGV  host, leaving (0 or 1), cursor, forgotten after, absent after, cold after, most, then hot
--       sources; times in microseconds
-- answer  known, live, cursor, then sources, earliest first
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local number = function(x) return string.format('%.0f', x) end
local function mend(key)
  local kind = redis.call('TYPE', key)['ok']
  if kind ~= 'zset' and kind ~= 'none' then redis.call('DEL', key) end
end
local hosts, hot = KEYS[1], KEYS[2]
local cursor, forgotten, absent, cold = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
mend(hosts)
mend(hot)
-- A time of the future is one of a clock that was set back, or of another server's.
if cursor > now then cursor = 0 end
local news = {}
if ARGV[2] == '1' then
  redis.call('ZREM', hosts, ARGV[1])
else
  redis.call('ZADD', hosts, number(now), ARGV[1])
  redis.call('PEXPIRE', hosts, number(math.ceil(forgotten / 1000)))
  redis.call('ZREMRANGEBYSCORE', hosts, '-inf', '(' .. number(now - forgotten))
  -- A host of the future is one whose server's clock was set back.
  redis.call('ZREMRANGEBYSCORE', hosts, '(' .. number(now), '+inf')
  for n = 8, #ARGV do redis.call('ZADD', hot, number(now), ARGV[n]) end
  if #ARGV >= 8 then redis.call('PEXPIRE', hot, number(math.ceil(cold / 1000))) end
  redis.call('ZREMRANGEBYSCORE', hot, '-inf', '(' .. number(now - cold))
  redis.call('ZREMRANGEBYSCORE', hot, '(' .. number(now), '+inf')
  news = redis.call('ZRANGEBYSCORE', hot, '(' .. number(cursor), '+inf', 'WITHSCORES', 'LIMIT', 0, tonumber(ARGV[7]))
end
local answer = {
  redis.call('ZCARD', hosts),
  redis.call('ZCOUNT', hosts, number(now - absent), '+inf'),
  number(cursor),
}
for n = 1, #news, 2 do
  answer[#answer + 1] = news[n]
  answer[3] = number(tonumber(news[n + 1]))
end
return answer
