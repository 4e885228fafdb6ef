// What nginx asks for each request: whose key is it, may it pass, how many tokens did it use?
//
// keys/SHA256.json   a customer's key: never the key itself, only its hash in the file's name
// door.json          prices, and what is asked of the model server so that it counts aloud
// usage/MONTH.jsonl  the ledger: a line when a request begins, and one when it ends
// state.json         sums, requests that run now and how far the ledger was read: each half second
//
// Each request has its own copy of the variables below; passing it on begins a new one, so what
// it is goes along as $job.
import crypto from 'crypto';
import fs from 'fs';

const HOME = ngx.prefix;
const STATE = `${HOME}state.json`;
const counts = ngx.shared.counts;    // every number, by name; those of door_... are Prometheus'
const running = ngx.shared.running;  // requests that passed and have not ended, by id
const BUDGETS = ['tokens_a_day', 'dollars_a_day', 'tokens_a_month', 'dollars_a_month'];
const EMPTY = Buffer.alloc(0);
const PIECE = /"(content|text)":"[^"]/;
const TTFT_S = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60];

// Fields that customers may send: OpenAI's, and settings of sampling that vLLM and llama.cpp share.
const FIELDS = ' model messages prompt stream stream_options max_tokens max_completion_tokens n stop'
    + ' best_of temperature top_p top_k min_p seed frequency_penalty presence_penalty'
    + ' repetition_penalty logit_bias logprobs top_logprobs echo suffix user metadata store tools'
    + ' tool_choice functions function_call parallel_tool_calls response_format reasoning_effort'
    + ' ignore_eos min_tokens ';

let me = null;               // the record of the customer's key
let job = null;              // what this request is and has used
let rest = EMPTY;            // the part of an answer that waits for the end of its line

// Whose key it is, or '' for none.
function customer(r) {
    const key = /^Bearer ([!-~]{1,256})$/.exec(r.headersIn.Authorization || '');
    if (key) {
        const digest = crypto.createHash('sha256').update(key[1]).digest('hex');
        try {
            const found = JSON.parse(fs.readFileSync(`${HOME}keys/${digest}.json`));
            if (!found.until || Date.parse(found.until) > Date.now()) {
                me = found;
                return me.customer;
            }
        } catch (error) {
            // there is no such key
        }
        count('door_bad_keys_total', 1);
    }
    return '';
}

// A request of a customer: refused, or sent on within its limits.
async function enter(r) {
    restore();
    const now = Date.now();
    let ask;
    try {
        ask = JSON.parse(await r.readRequestText());
    } catch (error) {
        ask = null;
    }
    const spent = BUDGETS.find((name) => me[name] !== null && used(name, now) >= me[name]);
    if (spent) {
        const what = spent.split('_a_');
        return refuse(r, spent, untilNext(now, what[1]),
            `The budget of ${what[0]} for this ${what[1]} is used up.`);
    }
    // The generic cell rate algorithm: `next` is when the requests so far would end if they
    // came evenly, and it may run ahead of the clock by one minute.
    const each = 60000 / me.requests_a_minute;
    const next = Math.max(counts.get(`pace|${me.customer}`) || 0, now) + each;
    if (next > now + 60000) {
        return refuse(r, 'requests_a_minute', (next - now - 60000) / 1000,
            `There may be ${me.requests_a_minute} requests a minute.`);
    }
    counts.set(`pace|${me.customer}`, next);
    const wrong = shape(ask, now);
    if (wrong) {
        return problem(r, 400, 'invalid_request_error', null, wrong);
    }
    const flying = series('door_requests_in_flight', {customer: me.customer});
    if (counts.incr(flying, 1, 0) > me.in_flight) {
        counts.incr(flying, -1);
        return refuse(r, 'in_flight', 1, `There may be ${me.in_flight} requests at a time.`);
    }
    job = {
        id: r.variables.request_id, customer: me.customer, key: me.name, at: now, route: r.uri,
        pid: process.pid, log: ledger(now), stream: ask.stream === true, first: 0, saved: now,
        input: 0, cached: 0, output: 0, booked: {input: 0, cached: 0, output: 0, dollars: 0},
        plain: !(ask.stream_options && ask.stream_options.include_usage),
    };
    if (job.stream) {
        ask.stream_options = Object.assign({}, config.stream_options, {include_usage: true});
        Object.assign(ask, config.stream);
    }
    running.set(job.id, JSON.stringify(job));
    write(job, {event: 'begin', at: new Date(now).toISOString(), route: job.route, key: job.key});
    r.variables.job = JSON.stringify(job);
    r.variables.body = JSON.stringify(ask);
    r.internalRedirect(job.stream ? '@stream' : '@whole');
}

// The list of models, as the server gives it.
function models(r) {
    r.internalRedirect('@models');
}

// Bring what is asked within the customer's limits; returns what is wrong with it, or ''.
function shape(ask, now) {
    if (!ask || typeof ask !== 'object' || Array.isArray(ask)) {
        return 'The body is not a JSON object.';
    }
    const odd = Object.keys(ask).find((name) => !/^[a-z_]+$/.test(name) || !FIELDS.includes(` ${name} `));
    if (odd !== undefined) {
        return `The field ${JSON.stringify(odd).slice(0, 80)} is not accepted here.`;
    }
    if (ask.stream != null && typeof ask.stream !== 'boolean') {
        return 'stream must be true or false.';
    }
    const numbers = ['n', 'best_of', 'max_tokens', 'max_completion_tokens'];
    const wrong = numbers.find((name) => ask[name] != null && !(Number.isInteger(ask[name]) && ask[name] > 0));
    if (wrong) {
        return `${wrong} must be a whole number above 0.`;
    }
    // Several answers, or prompts, share what one may have.
    const prompts = Array.isArray(ask.prompt) && typeof ask.prompt[0] !== 'number' ? ask.prompt.length : 1;
    const left = ['tokens_a_day', 'tokens_a_month'].filter((name) => me[name] !== null)
        .map((name) => me[name] - used(name, now));
    const answers = Math.max(ask.n || 1, ask.best_of || 1) * prompts;
    const most = Math.floor(Math.min.apply(null, left.concat(me.max_tokens)) / answers);
    if (!(most >= 1)) {
        return `These are more answers than there may be tokens (${me.max_tokens}).`;
    }
    const caps = ['max_tokens', 'max_completion_tokens'].filter((name) => ask[name] != null);
    (caps.length ? caps : ['max_tokens']).forEach((name) => {
        ask[name] = Math.min(ask[name] || most, most);
    });
    if (ask.min_tokens > most) {
        ask.min_tokens = most;
    }
    return '';
}

// A piece of a streamed answer: counted, and passed on without delay, whole lines at a time.
function stream(r, data, flags) {
    rest = rest.length ? Buffer.concat([rest, data]) : data;
    const end = flags.last ? rest.length : rest.lastIndexOf(10) + 1;
    let ready = rest.slice(0, end);
    rest = end < rest.length ? Buffer.from(rest.slice(end)) : EMPTY;
    job = job || JSON.parse(r.variables.job);
    if (ready.length) {
        const text = ready.toString();
        const seen = text.split('\n').map(event).join('\n');
        if (seen !== text) {
            ready = Buffer.from(seen);
        }
        const now = Date.now();
        if (now >= job.saved + 100) {
            job.saved = now;
            book(job);
            running.set(job.id, JSON.stringify(job));
        }
    }
    if (ready.length || flags.last) {
        r.sendBuffer(ready, flags);
    }
}

// Count what a line says, and return what the customer is to see of it.
function event(line) {
    if (!line.startsWith('data:') || !line.endsWith('}')) {
        return line;
    }
    // The short way, a third of the time: the count is last, and letters of a text never look
    // like its name, because there each quotation mark has a backslash before it.
    const at = Math.max(line.lastIndexOf(',"usage":{'), line.lastIndexOf(',"timings":{'));
    try {
        if (at < 0 && PIECE.test(line)) {
            tally({choices: [{text: '.'}]});
            return line;
        }
        if (at > 0 && line.endsWith('}}') && !line.includes('"choices":[]')) {
            tally(JSON.parse(`{${line.slice(at + 1)}`));
            return `${line.slice(0, at)}}`;
        }
    } catch (error) {
        // the long way
    }
    let said;
    try {
        said = JSON.parse(line.slice(5));
    } catch (error) {
        return line;
    }
    tally(said);
    if (said.usage && said.choices && !said.choices.length) {
        return job.plain ? '' : line;  // the usage at the end, if the customer asked for it
    }
    if (said.usage === undefined && said.timings === undefined) {
        return line;
    }
    delete said.usage;  // what only the door asked for
    delete said.timings;
    return `data: ${JSON.stringify(said)}`;
}

// An answer in one piece: passed on as it comes, counted at its end.
function whole(r, data, flags) {
    r.sendBuffer(data, flags);
    job = job || JSON.parse(r.variables.job);
    rest = Buffer.concat([rest, data]);
    if (flags.last) {
        try {
            tally(JSON.parse(rest.toString()));
        } catch (error) {
            // it is no JSON: an error of the server, which costs nothing
        }
        running.set(job.id, JSON.stringify(job));
    }
}

// The server's own count where it says one (vLLM: usage, llama.cpp: timings); else its pieces.
function tally(said) {
    const usage = said.usage, timings = said.timings;
    if (usage) {
        job.input = usage.prompt_tokens || 0;
        job.output = usage.completion_tokens || 0;
        const details = usage.prompt_tokens_details || {};
        job.cached = details.cached_tokens || job.cached;
        job.counted = true;
    } else if (timings && timings.predicted_n !== undefined) {
        job.cached = timings.cache_n || 0;
        job.input = timings.prompt_n + job.cached;
        job.output = timings.predicted_n;
    } else {
        (said.choices || []).forEach((choice) => {
            const delta = choice.delta || choice;
            if (delta.content || delta.text || delta.reasoning_content || delta.tool_calls) {
                job.output += 1;
            }
        });
    }
    if (!job.first && job.output) {
        job.first = Date.now();
    }
}

// nginx asks for this when a request has ended, however it ended.
function ended(r) {
    const name = r.variables.customer;
    if (name) {
        count(series('door_requests_total', {customer: name, code: r.variables.status}), 1);
    }
    if (r.variables.job) {
        finish(job || JSON.parse(r.variables.job), Number(r.variables.status), r.variables.request_completion === 'OK');
    }
    return '';
}

// Book what a request used, and write its last line.
function finish(one, status, complete) {
    const now = Date.now();
    const name = {customer: one.customer};
    write(one, {
        event: 'end', at: new Date(now).toISOString(), status: status, complete: complete,
        input: one.input, cached: one.cached, output: one.output, usd: dollars(one),
        seconds: (now - one.at) / 1000, ttft: one.first ? (one.first - one.at) / 1000 : null,
    });
    book(one);
    if (running.delete(one.id)) {
        counts.incr(series('door_requests_in_flight', name), -1, 0);
    }
    count(series('door_seconds_total', name), (now - one.at) / 1000);
    if (one.first) {
        const ttft = (one.first - one.at) / 1000;
        const le = TTFT_S.find((limit) => ttft <= limit) || '+Inf';
        count(series('door_first_token_seconds_bucket', {le: le}), 1);
        count('door_first_token_seconds_sum', ttft);
    }
}

// Add what a request used since the last time to its customer's sums.
function book(one) {
    const name = one.customer, now = Date.now();
    const now_used = {input: one.input, cached: one.cached, output: one.output, dollars: dollars(one)};
    const more = {};
    Object.keys(now_used).forEach((kind) => {
        more[kind] = now_used[kind] - one.booked[kind];
    });
    one.booked = now_used;
    ['day', 'month'].forEach((period) => {
        const key = `used|${name}|${stamp(now, period)}`;
        count(`${key}|tokens`, more.input + more.output);
        count(`${key}|dollars`, more.dollars);
    });
    ['input', 'cached', 'output'].forEach((kind) => {
        count(series('door_tokens_total', {customer: name, kind: kind}), more[kind]);
    });
    count(series('door_cost_dollars_total', {customer: name}), more.dollars);
}

// US dollars at the prices per million tokens; cached input is a part of the input.
function dollars(one) {
    const usd = config.usd_per_million;
    return ((one.input - one.cached) * usd.input + one.cached * usd.cached + one.output * usd.output) / 1e6;
}

// Twice a second: end what a killed worker left, book what runs, and save it all.
function tick() {
    restore();
    running.items(1e6).forEach((item) => {
        const one = JSON.parse(item[1]);
        if (!alive(one.pid)) {
            finish(one, 499, false);
        }
    });
    const at = size(ledger(Date.now()));
    const state = {log: ledger(Date.now()), at: at, counts: {}, running: running.items(1e6)
        .map((item) => JSON.parse(item[1])).map((one) => Object.assign(one, {usd: dollars(one)}))};
    const today = [stamp(Date.now(), 'day'), stamp(Date.now(), 'month')];
    counts.items(1e6).forEach((item) => {
        const part = item[0].split('|');
        if (part[0] === 'used' && !today.includes(part[2])) {
            counts.delete(item[0]);  // of a day or a month that is over
        } else if (item[0] !== 'ready' && !item[0].startsWith('door_requests_in_flight')) {
            state.counts[item[0]] = item[1];
        }
    });
    fs.writeFileSync(`${STATE}.new`, JSON.stringify(state), {mode: 0o600});
    fs.renameSync(`${STATE}.new`, STATE);
}

// After a start: the sums of before, and an end for each request that was running at the last one.
function restore() {
    if (!counts.add('ready', 1)) {
        return;
    }
    let state = {log: ledger(Date.now()), at: 0, counts: {}, running: []};
    try {
        state = JSON.parse(fs.readFileSync(STATE));
    } catch (error) {
        // the first start: the ledger of this month is all there is
    }
    Object.keys(state.counts).forEach((name) => counts.set(name, state.counts[name]));
    const open = {};
    state.running.forEach((one) => {
        open[one.id] = one;
    });
    const logs = [[state.log, state.at]];
    if (state.log !== ledger(Date.now())) {
        logs.push([ledger(Date.now()), 0]);
    }
    logs.forEach((log) => tail(log[0], log[1]).forEach((line) => {
        if (line.event === 'begin') {
            open[line.id] = open[line.id] || Object.assign(blank(), {
                id: line.id, customer: line.customer, key: line.key, log: log[0], at: Date.parse(line.at),
            });
        } else {
            book(Object.assign(blank(), line, {booked: (open[line.id] || blank()).booked}));
            delete open[line.id];
        }
    }));
    Object.keys(open).forEach((id) => finish(open[id], 499, false));
}

function blank() {
    return {input: 0, cached: 0, output: 0, first: 0, booked: {input: 0, cached: 0, output: 0, dollars: 0}};
}

// The lines of a ledger from a position on.
function tail(log, from) {
    const more = size(log) - from;
    if (more <= 0) {
        return [];
    }
    const file = fs.openSync(HOME + log, 'r');
    const data = Buffer.alloc(more);
    fs.readSync(file, data, 0, more, from);
    fs.closeSync(file);
    return data.toString().split('\n').filter((line) => line.endsWith('}')).map((line) => JSON.parse(line));
}

function size(log) {
    try {
        return fs.statSync(HOME + log).size;
    } catch (error) {
        return 0;
    }
}

function ledger(now) {
    return `usage/${stamp(now, 'month')}.jsonl`;
}

function write(one, more) {
    const line = Object.assign({id: one.id, customer: one.customer}, more);
    fs.appendFileSync(HOME + one.log, JSON.stringify(line) + '\n', {mode: 0o600});
}

// The day or the month in UTC, as it stands in the ledger.
function stamp(now, period) {
    return new Date(now).toISOString().slice(0, period === 'day' ? 10 : 7);
}

// Seconds until the next day or month begins.
function untilNext(now, period) {
    const date = new Date(now), y = date.getUTCFullYear(), m = date.getUTCMonth();
    const next = period === 'day' ? Date.UTC(y, m, date.getUTCDate() + 1) : Date.UTC(y, m + 1, 1);
    return (next - now) / 1000;
}

function alive(pid) {
    try {
        process.kill(pid, 0);
        return true;
    } catch (error) {
        return false;
    }
}

// What this customer has used of a budget.
function used(budget, now) {
    const what = budget.split('_a_');
    return counts.get(`used|${me.customer}|${stamp(now, what[1])}|${what[0]}`) || 0;
}

function count(name, more) {
    counts.incr(name, more, 0);
}

function series(name, labels) {
    return `${name}{${Object.keys(labels).map((label) => `${label}="${labels[label]}"`).join(',')}}`;
}

function refuse(r, limit, wait_s, message) {
    count(series('door_refused_total', {customer: me.customer, reason: limit}), 1);
    r.headersOut['Retry-After'] = String(Math.max(1, Math.ceil(wait_s)));
    const budget = limit.startsWith('tokens') || limit.startsWith('dollars');
    const code = budget ? 'insufficient_quota' : 'rate_limit_exceeded';
    problem(r, 429, budget ? 'insufficient_quota' : 'requests', code, message);
}

// An error in OpenAI's form.
function problem(r, status, type, code, message) {
    r.headersOut['Content-Type'] = 'application/json';
    r.return(status, JSON.stringify({error: {message: message, type: type, param: null, code: code}}));
}

// What the customer has used, and may use.
function usage(r) {
    const now = Date.now(), answer = {customer: me.customer};
    BUDGETS.forEach((name) => {
        answer[name] = {used: used(name, now), limit: me[name]};
    });
    r.return(200, JSON.stringify(answer));
}

// Prometheus' text. The names are those of the counters themselves; buckets are added up here.
function metrics(r) {
    const lines = counts.items(1e6).filter((item) => item[0].startsWith('door_')
        && !item[0].includes('_bucket')).map((item) => `${item[0]} ${item[1]}`).sort();
    let sum = 0;
    TTFT_S.concat('+Inf').forEach((le) => {
        const name = series('door_first_token_seconds_bucket', {le: le});
        sum += counts.get(name) || 0;
        lines.push(`${name} ${sum}`);
    });
    lines.push(`door_first_token_seconds_count ${sum}`);
    const named = {};
    r.return(200, lines.map((line) => {
        const name = line.match(/^[a-z_]+/)[0];
        const family = name.replace(/_(bucket|sum|count)$/, '');
        const type = name.endsWith('_total') ? 'counter' : name === family ? 'gauge' : 'histogram';
        const first = named[family] ? '' : `# TYPE ${family} ${type}\n`;
        named[family] = true;
        return `${first}${line}\n`;
    }).join(''));
}

export default {customer, ended, enter, metrics, models, stream, tick, usage, whole};
