-- adaptive: the hosts of a fleet follow one backend's health as one. See src/redis/adaptive.rs.
--
-- KEYS  the state, the records: hashes
-- ARGV  host, its record or '', the epoch of the state it has, the epoch and the state it offers or
--       '', whether it wants all records (0 or 1), how long a record, the one who steps and the
--       state live, in milliseconds, most hosts
-- answer  whether the offer was taken, whether this host steps, the epoch, the state's age, hosts,
--         the state ('' if it is the one the host has), then host, age and record of each; ages in
--         microseconds
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local number = function(x) return string.format('%.0f', x) end
local function mend(key)
  local kind = redis.call('TYPE', key)['ok']
  if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', key) end
end
-- A time of the future is one of a clock that was set back: as old as can be.
local function age(at)
  at = tonumber(at) or 0
  if not (at >= 0 and at <= now) then return now end
  return now - at
end
local state, records = KEYS[1], KEYS[2]
local host, record, known = ARGV[1], ARGV[2], tonumber(ARGV[3])
local offered, body, all = tonumber(ARGV[4]), ARGV[5], ARGV[6] == '1'
local record_ms, step_ms, state_ms, most = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
mend(state)
mend(records)
local has = redis.call('HMGET', state, 'epoch', 'at', 'stepper', 'since')
local epoch = tonumber(has[1]) or 0
-- What no host of ours can have counted to.
if not (epoch >= 0 and epoch <= 4503599627370496) then
  redis.call('DEL', state)
  has, epoch = {}, 0
end
local taken = 0
-- A state behind the one a host goes on from is one that a restored server brought back.
if body ~= '' and epoch <= known then
  redis.call('HSET', state, 'epoch', number(offered), 'at', number(now), 'body', body)
  redis.call('PEXPIRE', state, number(state_ms))
  epoch, taken = offered, 1
  has[2] = number(now)
end
local steps = 0
if has[3] == host or not has[3] or age(has[4]) > step_ms * 1000 then
  redis.call('HSET', state, 'stepper', host, 'since', number(now))
  if redis.call('PTTL', state) < 0 then redis.call('PEXPIRE', state, number(state_ms)) end
  steps = 1
end
-- A record begins with its time, in 16 digits.
if record ~= '' and (redis.call('HEXISTS', records, host) == 1 or redis.call('HLEN', records) < most) then
  redis.call('HSET', records, host, string.format('%016.0f', now) .. record)
  redis.call('PEXPIRE', records, number(record_ms))
end
local answer = { taken, steps, number(epoch), number(age(has[2])), redis.call('HLEN', records), '' }
if epoch ~= known and taken == 0 then answer[6] = redis.call('HGET', state, 'body') or '' end
if all then
  local found = redis.call('HGETALL', records)
  for n = 1, #found, 2 do
    local old = age(string.sub(found[n + 1], 1, 16))
    if old > record_ms * 1000 then
      redis.call('HDEL', records, found[n])
    elseif found[n] ~= host then
      answer[#answer + 1] = found[n]
      answer[#answer + 1] = number(old)
      answer[#answer + 1] = string.sub(found[n + 1], 17)
    end
  end
end
return answer
