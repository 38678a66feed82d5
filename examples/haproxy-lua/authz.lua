-- An action that asks the limiter and hands its refusal to the client.
core.register_action("ratelimit", { "http-req" }, function(txn)
    local headers = { ["x-forwarded-for"] = { txn.sf:src() } }
    local key = txn.sf:req_hdr("x-api-key")
    if #key > 0 and #key <= 256 then
        headers["x-api-key"] = { key }
    end
    local answer = core.httpclient():get{
        url = "http://127.0.0.1:8079/v1/authz",
        headers = headers,
    }
    -- Whatever is no refusal allows: also a limiter that does not answer.
    if not answer or answer.status ~= 429 then return end
    local reply = txn:reply()
    reply:set_status(answer.status)
    for _, name in ipairs({ "content-type", "retry-after", "ratelimit", "ratelimit-policy" }) do
        for _, value in pairs(answer.headers[name] or {}) do reply:add_header(name, value) end
    end
    reply:set_body(answer.body)
    txn:done(reply)
end)
