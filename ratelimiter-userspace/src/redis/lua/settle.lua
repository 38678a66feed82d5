-- settle: a batch of keys, each charged, read and granted from in one step. What it does is written
-- down, word by word, in src/sync/ledger; a test holds the two together.
--
-- KEYS[n]  the key of entry n
-- ARGV[n]  its entry: algorithm (a byte), then doubles: limit, burst, window, grain, revision, cap of
--          spend and debt, cap of what is owed, spend, debt, returned, age, want, least
-- answer   one string of doubles: time, clamped, mended; for each entry level, granted, fleet spend,
--          wait, ends, and a byte: outdated
--
-- Amounts are whole numbers below 2^53, times are microseconds. What is kept for a key is a byte
-- (the algorithm) and doubles: revision, spent, then by algorithm
--   1 token bucket    debt, at, burst
--   2 sliding log     at, amount, at, amount, ...; oldest first
--   3 sliding window  start, current, previous
--   4 fixed window    start, current
-- Anything else under a key is dropped. Every write sets the expiry.

local MAX, MIN_TTL, MAX_LOG, SAME = 9007199254740991, 2000000, 4096, 64
local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local pack, unpack_ = struct.pack, struct.unpack
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local clamped, mended = 0, 0

local function whole(x)
  local up = ceil(x)
  if up > 0 then return min(up, MAX) end
  return 0
end

local function at_most(x, most)
  if x > most then
    clamped = clamped + 1
    return most
  end
  return x
end

-- Whether x is a number that the script may have written: whole, but for what a bucket owes.
local function sound(x)
  return x >= 0 and x <= MAX and x % 1 == 0
end

local function since(at)
  return max(now - at, 0)
end

-- The state under a key, as a table, or nil.
local function read(key)
  local text = redis.pcall('GET', key)
  if not text then return nil end
  local state, kind
  if type(text) == 'string' then
    local size = #text
    kind = string.byte(text, 1)
    if size == 41 and (kind == 1 or kind == 3) then
      local _, revision, spent, a, b, c = unpack_('<Bddddd', text)
      if sound(revision) and sound(spent) and sound(b) and sound(c)
        and (sound(a) or kind == 1 and a >= 0 and a <= MAX) then
        state = { kind = kind, revision = revision, spent = spent, a, b, c }
      end
    elseif size == 33 and kind == 4 then
      local _, revision, spent, a, b = unpack_('<Bdddd', text)
      if sound(revision) and sound(spent) and sound(a) and sound(b) then
        state = { kind = kind, revision = revision, spent = spent, a, b }
      end
    elseif kind == 2 and size >= 17 and (size - 17) % 16 == 0 and size <= 17 + 32 * MAX_LOG then
      local _, revision, spent = unpack_('<Bdd', text)
      if sound(revision) and sound(spent) then
        state = { kind = kind, revision = revision, spent = spent }
        local n = 0
        for place = 18, size, 16 do
          local at, amount = unpack_('<dd', text, place)
          if not (sound(at) and sound(amount)) then
            state = nil
            break
          end
          state[n + 1], state[n + 2] = min(at, now), amount
          n = n + 2
        end
      end
    end
  end
  -- The clock may have been set back, or be that of another server: nothing is of the future.
  if state and (kind == 3 or kind == 4) then state[1] = min(state[1], now) end
  if not state then
    mended = mended + 1
    redis.call('DEL', key)
  end
  return state
end

local function write(key, state, ttl)
  local text
  local kind = state.kind
  if kind == 1 or kind == 3 then
    text = pack('<Bddddd', kind, state.revision, state.spent, state[1], state[2], state[3])
  elseif kind == 4 then
    text = pack('<Bdddd', kind, state.revision, state.spent, state[1], state[2])
  else
    local parts = { pack('<Bdd', kind, state.revision, state.spent) }
    for n = 1, #state, 2 do
      parts[#parts + 1] = pack('<dd', state[n], state[n + 1])
    end
    text = table.concat(parts)
  end
  redis.call('SET', key, text, 'PX', ceil(max(ttl, MIN_TTL) / 1000))
end

local function grant(room, e)
  local most = min(room, e.want)
  local granted = most - most % max(e.grain, 1)
  if granted < e.least then return 0 end
  return granted
end

-- Whether what an entry says of a window is about the one that began `elapsed` ago.
local function same_window(e, elapsed)
  return e.age <= elapsed + floor(e.window / SAME)
end

local function charged(used, same, e)
  if same then
    used = max(max(used, e.debt) - e.returned, 0)
  end
  return min(used + e.spend, e.debt_cap)
end

local function wait_of(granted, e, wait)
  if granted >= e.least then return 0 end
  if e.least > e.limit then return MAX end
  return max(wait(), 1)
end

-- Token bucket.

local function drained(state, e)
  return max(state[1] - since(state[2]) * e.limit / e.window, 0)
end

local function time_for(amount, e)
  if amount <= 0 then return 0 end
  return whole(amount * e.window / e.limit)
end

local function settle_bucket(state, newer, e)
  local debt, known = 0, e.burst
  if state then
    debt = drained(state, e)
    if newer then
      if e.burst < state[3] then debt = min(debt, e.burst) end
    else
      known = state[3]
    end
  end
  debt = max(debt, e.debt)
  debt = max(debt - e.returned, 0)
  debt = min(debt + e.spend, e.debt_cap)
  local granted = grant(max(floor(e.burst - debt), 0), e)
  debt = debt + granted
  local wait = 0
  if granted < e.least then
    wait = MAX
    -- One more, so that rounding never makes it too early.
    if e.least <= e.burst then wait = time_for(debt + e.least - e.burst, e) + 1 end
  end
  local ends = time_for(debt, e)
  return { debt, now, known }, ends, whole(debt), granted, wait, ends
end

-- Fixed window.

local function settle_fixed(state, newer, e)
  local start, current
  if state and state[2] ~= 0 and since(state[1]) < e.window then
    start, current = state[1], state[2]
    if newer then current = min(current, e.limit) end
  else
    start, current = now, 0
    if e.debt ~= 0 and e.age < e.window then start = max(now - e.age, 0) end
  end
  current = charged(current, same_window(e, since(start)), e)
  local granted = grant(max(e.limit - current, 0), e)
  current = current + granted
  local ends = max(e.window - since(start), 0)
  local wait = wait_of(granted, e, function() return ends end)
  local lives = 0
  if current ~= 0 then lives = ends end
  return { start, current }, lives, current, granted, wait, ends
end

-- Sliding window.

local function rolled(state, e)
  local elapsed = since(state[1])
  if elapsed < e.window and (state[2] ~= 0 or state[3] ~= 0) then
    return state[1], state[2], state[3]
  end
  if elapsed >= e.window and elapsed - e.window < e.window and state[2] ~= 0 then
    return state[1] + e.window, 0, state[2]
  end
  return now, 0, 0
end

local function weighted(start, current, previous, e)
  return current + whole(previous * max(e.window - since(start), 0) / e.window)
end

local function settle_sliding(state, newer, e)
  local start, current, previous = now, 0, 0
  if state then start, current, previous = rolled(state, e) end
  if newer then current, previous = min(current, e.limit), min(previous, e.limit) end
  if current == 0 and previous == 0 and e.debt ~= 0 and e.age < e.window then
    start = max(now - e.age, 0)
  end
  current = charged(current, same_window(e, since(start)), e)
  local granted = grant(max(e.limit - weighted(start, current, previous, e), 0), e)
  current = current + granted
  local left = max(e.window - since(start), 0)
  local wait = wait_of(granted, e, function()
    local begin, old, room = start, previous, e.limit - e.least - current
    if room < 0 or previous == 0 then
      begin, old, room = start + e.window, current, e.limit - e.least
    end
    if old == 0 then return 1 end
    local may_be_left = floor(room * e.window / old)
    return max(begin + max(e.window - may_be_left, 0) - now, 0)
  end)
  local lives = 0
  if current ~= 0 then lives = left + e.window elseif previous ~= 0 then lives = left end
  return { start, current, previous }, lives, weighted(start, current, previous, e), granted, wait, left
end

-- Sliding log.

-- The entries still in the window, and their sum.
local function kept_log(state, e)
  local log, sum = {}, 0
  local n = 1
  while n < #state and since(state[n]) >= e.window do n = n + 2 end
  while n < #state do
    log[#log + 1], log[#log + 2] = state[n], state[n + 1]
    sum = sum + state[n + 1]
    n = n + 2
  end
  return log, sum
end

local function push(log, at, amount)
  if amount == 0 then return end
  local last = #log
  if last > 0 and log[last - 1] >= at then
    log[last] = log[last] + amount
  else
    log[last + 1], log[last + 2] = at, amount
  end
  if #log > 2 * MAX_LOG then
    table.remove(log, 1)
    local oldest = table.remove(log, 1)
    log[2] = log[2] + oldest
  end
end

-- Puts `amount` where it began; entries stay in order of time.
local function put_back(log, at, amount)
  local place = 1
  while place < #log and log[place] < at do place = place + 2 end
  table.insert(log, place, amount)
  table.insert(log, place, at)
end

local function settle_log(state, e)
  local log, used = {}, 0
  if state then log, used = kept_log(state, e) end
  if e.age < e.window then
    if used < e.debt then
      put_back(log, max(now - e.age, 0), e.debt - used)
      used = e.debt
    end
    local back = min(e.returned, used)
    used = used - back
    while back > 0 and #log > 0 do
      local taken = min(back, log[#log])
      log[#log] = log[#log] - taken
      back = back - taken
      if log[#log] == 0 then
        log[#log] = nil
        log[#log] = nil
      end
    end
  end
  local spend = min(e.spend, max(e.debt_cap - used, 0))
  push(log, now, spend)
  used = used + spend
  local granted = grant(max(e.limit - used, 0), e)
  push(log, now, granted)
  used = used + granted
  local wait = wait_of(granted, e, function()
    local sum = 0
    for n = 2, #log, 2 do sum = sum + log[n] end
    local must_leave = max(sum + e.least - e.limit, 0)
    for n = 1, #log, 2 do
      if log[n + 1] >= must_leave then return max(log[n] + e.window - now, 0) end
      must_leave = must_leave - log[n + 1]
    end
    return 1
  end)
  local ends = 0
  if #log > 0 then ends = max(log[#log - 1] + e.window - now, 0) end
  return log, ends, used, granted, wait, ends
end

-- What another algorithm's state holds under this entry's quota, at most the new depth.
local function used_of(state, e)
  local used = 0
  if state.kind == 1 then
    used = whole(drained(state, e))
  elseif state.kind == 2 then
    local _, sum = kept_log(state, e)
    used = sum
  elseif state.kind == 3 then
    local start, current, previous = rolled(state, e)
    used = weighted(start, current, previous, e)
  elseif since(state[1]) < e.window then
    used = state[2]
  end
  if e.kind == 1 then return min(used, e.burst) end
  return min(used, e.limit)
end

local function carried(state, e)
  local used = used_of(state, e)
  if e.kind == 1 then return { used, now, e.burst } end
  if e.kind == 2 then
    if used == 0 then return {} end
    return { now, used }
  end
  if e.kind == 3 then return { now, used, 0 } end
  return { now, used }
end

local answers = { '' }
for n = 1, #KEYS do
  local key, e = KEYS[n], {}
  local cap
  e.kind, e.limit, e.burst, e.window, e.grain, e.revision, cap, e.debt_cap, e.spend, e.debt,
    e.returned, e.age, e.want, e.least = unpack_('<Bddddddddddddd', ARGV[n])
  local depth = e.limit
  if e.kind == 1 then depth = e.burst end
  e.spend, e.debt = at_most(e.spend, cap), at_most(e.debt, cap)
  e.returned = at_most(e.returned, depth)
  e.age, e.want, e.least = min(e.age, MAX), min(e.want, MAX), min(e.least, MAX)
  local state = read(key)
  local revision, spent = 0, 0
  if state then revision, spent = state.revision, state.spent end
  if state and e.revision < revision and state.kind ~= e.kind then
    answers[n + 1] = pack('<dddddB', 0, 0, spent, 0, 0, 1)
  else
    local newer = e.revision > revision
    if state and state.kind ~= e.kind then state = carried(state, e) end
    local settle = settle_log
    if e.kind == 1 then
      settle = settle_bucket
    elseif e.kind == 3 then
      settle = settle_sliding
    elseif e.kind == 4 then
      settle = settle_fixed
    end
    local after, lives, level, granted, wait, ends
    if e.kind == 2 then
      after, lives, level, granted, wait, ends = settle(state, e)
    else
      after, lives, level, granted, wait, ends = settle(state, newer, e)
    end
    local more = e.spend + granted
    if spent + more > MAX then spent = more else spent = spent + more end
    after.kind, after.revision, after.spent = e.kind, max(revision, e.revision), spent
    write(key, after, lives)
    answers[n + 1] = pack('<dddddB', level, granted, spent, wait, ends, 0)
  end
end
answers[1] = pack('<ddd', now, clamped, mended)
return table.concat(answers)
