-- What wrk sends and what it takes for an answer.
--
-- What lives here: requests in turn from the plan that load.py wrote; each answer is looked at, counted by status, and
-- its text looked up among those that its model may say. What does not: which version was loaded when: the pairs of
-- fingerprint and version that were seen are printed at the end, and load.py checks them.
--
-- The plan is lines of fields between tabs: `ask BODY` and `text MODEL VERSION TEXT`.

local asks, versions = {}, {}
local turn = 0

-- The end runs in a state of its own, which sees of each thread only its globals.
local threads = {}
function setup(thread)
  table.insert(threads, thread)
end

statuses, seen, wrong = {}, {}, {}

function init(args)
  for line in io.lines(args[1]) do
    local kind, rest = line:match("^(%a+)\t(.*)$")
    if kind == "ask" then
      asks[#asks + 1] = rest
    else
      local model, version, text = rest:match("^([^\t]*)\t([^\t]*)\t(.*)$")
      versions[model .. "\t" .. text] = version
    end
  end
  wrk.method = "POST"
  wrk.path = "/v1/completions"
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  turn = turn % #asks + 1
  return wrk.format(nil, nil, nil, asks[turn])
end

function response(status, headers, body)
  local key = tostring(status)
  statuses[key] = (statuses[key] or 0) + 1
  local by = body:match('"system_fingerprint":"([^"]*)"')
  local text = body:match('"text":"(.-)"}')
  -- Several answers are legitimate for a prompt, and wrk does not say which prompt this one is for: that it is a
  -- whole text of one version is what can be known here.
  local version = by and text and versions[by:match("^(.*)@") .. "\t" .. text]
  if status == 200 and version then
    local pair = by .. "\t" .. version
    seen[pair] = (seen[pair] or 0) + 1
  elseif #wrong < 20 then
    wrong[#wrong + 1] = status .. " " .. body:sub(1, 300)
  end
end

local function line(...)
  io.write("@\t", table.concat({ ... }, "\t"), "\n")
end

function done(summary, latency, requests)
  for name, count in pairs(summary.errors) do
    line("error", name, count)
  end
  line("requests", "all", summary.requests)
  for _, part in ipairs({ 50, 99 }) do
    line("latency", part, latency:percentile(part))
  end
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("statuses")) do
      line("status", status, count)
    end
    for pair, count in pairs(thread:get("seen")) do
      line("seen", count, pair)
    end
    for _, what in ipairs(thread:get("wrong")) do
      line("wrong", (what:gsub("%c", " ")))
    end
  end
end
