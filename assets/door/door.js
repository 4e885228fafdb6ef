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
const QUOTE = 34, BRACE = 125;
const LONGEST_LINE = 1 << 20, LONGEST_ANSWER = 16 << 20;  // bytes, held in memory
const SHORT = 64;  // tokens of a prompt that passes while anything is left of a budget
const NUMBERS = ['n', 'best_of', 'max_tokens', 'max_completion_tokens'];
const TTFT_S = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60];

// Fields that customers may send: OpenAI's, and settings of sampling that vLLM and llama.cpp share.
const FIELDS = ' model messages prompt stream stream_options max_tokens max_completion_tokens n stop'
    + ' best_of temperature top_p top_k min_p seed frequency_penalty presence_penalty'
    + ' repetition_penalty logit_bias logprobs top_logprobs echo suffix user metadata store tools'
    + ' tool_choice functions function_call parallel_tool_calls response_format reasoning_effort'
    + ' ignore_eos min_tokens ';

let me = null;     // the record of the customer's key
let job = null;    // what this request is and has used
let parts = [];    // what has come of a line, or of an answer in one piece

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

// A request of a customer: refused, or given a place, before its body is read.
function admit(r) {
    try {
        restore();
        const refused = overLimit(Date.now());
        if (refused) {
            return refuse.apply(null, [r].concat(refused));
        }
        begin(r);
    } catch (error) {
        broken(r, error);
    }
}

// A request that was admitted: sent on within its customer's limits.
async function enter(r) {
    try {
        let ask = null;
        try {
            ask = JSON.parse(await r.readRequestText());
        } catch (error) {
            // what is wrong with it, shape() says
        }
        const wrong = shape(ask);
        if (wrong) {
            return problem(r, 400, 'invalid_request_error', null, wrong);
        }
        const read = Math.floor(letters([ask.messages, ask.prompt, ask.tools]) / 4);  // about
        const room = budget(ask, read, Date.now());
        if (room.most < 1) {
            return refuse.apply(null, [r].concat(room.refused));
        }
        if (!place(answers(ask) - 1)) {
            return refuse(r, 'in_flight', 1, `There may be ${me.in_flight} answers at a time.`);
        }
        cap(ask, room.most);
        job.read = read;
        job.held = most(ask, read);
        hold(job, 1);
        send(r, ask);
    } catch (error) {
        broken(r, error);
    }
}

function broken(r, error) {
    ngx.log(ngx.ERR, `a request was refused: ${error.message}`);
    problem(r, 500, 'server_error', null, 'The door failed.');
}

// Why a customer may not ask now: which limit, for how many seconds, and in words.
function overLimit(now) {
    const spent = BUDGETS.find((name) => me[name] !== null && used(name, now) >= me[name]);
    if (spent) {
        const what = spent.split('_a_');
        const words = `The budget of ${what[0]} for this ${what[1]} is used up.`;
        return [spent, untilNext(now, what[1]), words];
    }
    const early = tooFast(now);
    if (early) {
        return early;
    }
    if (counts.incr(flying(me.customer), 1, 0) > me.in_flight) {
        counts.incr(flying(me.customer), -1);
        return ['in_flight', 1, `There may be ${me.in_flight} requests at a time.`];
    }
    counts.set(`pace|${me.customer}`, pace(now));
    return null;
}

// The generic cell rate algorithm: when the requests so far would end if they came evenly. It may
// run ahead of the clock by one minute, and by one request at least.
function pace(now) {
    const each = 60000 / me.requests_a_minute;
    return Math.max(counts.get(`pace|${me.customer}`) || 0, now) + each;
}

function tooFast(now) {
    const words = `There may be ${me.requests_a_minute} requests a minute.`;
    const ahead = Math.max(60000, 60000 / me.requests_a_minute);
    const wait_s = (pace(now) - now - ahead) / 1000;
    return wait_s > 0 ? ['requests_a_minute', wait_s, words] : null;
}

// A question about models or usage counts as a request, too, and needs no place and no budget.
function counted(r, answer) {
    const now = Date.now(), early = tooFast(now);
    if (early) {
        return refuse.apply(null, [r].concat(early));
    }
    counts.set(`pace|${me.customer}`, pace(now));
    answer(now);
}

// From here on the request holds a place, which ended() gives back whatever happens.
function begin(r) {
    const now = Date.now();
    job = {
        id: r.variables.request_id, customer: me.customer, key: me.name, at: now, route: r.uri,
        pid: process.pid, log: ledger(now), places: 1, begun: false, first: 0, saved: now,
        input: 0, cached: 0, output: 0, booked: {input: 0, cached: 0, output: 0, dollars: 0},
        read: 0, held: {tokens: 0, dollars: 0}, per: 1, each: null,
    };
    running.set(job.id, JSON.stringify(job));
}

// Take more places: a server computes each answer in one of its own.
function place(more) {
    if (counts.incr(flying(me.customer), more, 0) > me.in_flight) {
        counts.incr(flying(me.customer), -more);
        return false;
    }
    job.places += more;
    return true;
}

// How long each answer may be: within the length that is allowed, and what is left of each budget
// when the prompt is paid and what the customer's other requests may still use is laid aside.
function budget(ask, read, now) {
    const usd = config.usd_per_million, many = answers(ask);
    const room = {most: Math.floor(me.max_tokens / many)};
    BUDGETS.filter((name) => me[name] !== null).forEach((name) => {
        const tokens = name.startsWith('tokens');
        const left = me[name] - used(name, now);
        const free = left - held(me.customer, tokens ? 'tokens' : 'dollars');
        const prompt = Math.max(0, read - SHORT) * (tokens ? 1 : usd.input / 1e6);
        const each = tokens ? 1 : usd.output / 1e6;
        const within = (sum) => Math.floor((sum - prompt) / Math.max(each * many, 1e-12) + 1e-6);
        if (within(free) < 1 && room.most >= 1) {
            room.refused = within(left) >= 1  // when the others have ended
                ? ['in_flight', 1, 'Requests that are running hold the rest of the budget.']
                : [name, untilNext(now, name.split('_a_')[1]), 'The budget has too little left.'];
        }
        room.most = Math.min(room.most, within(free));
    });
    return room;
}

// Lay aside the most that it may use (1), or give that back (-1).
function hold(one, sign) {
    ['tokens', 'dollars'].forEach((kind) => {
        count(`held|${one.customer}|${kind}`, sign * one.held[kind]);
    });
}

// The most that it may use.
function most(ask, read) {
    const write = answers(ask) * Math.max(ask.max_tokens || 0, ask.max_completion_tokens || 0);
    return {tokens: read + write, dollars: dollars({input: read, cached: 0, output: write})};
}

// How much text there is in a request, in letters; a number is a token of its own.
function letters(part) {
    if (typeof part === 'string') {
        return part.length;
    }
    if (!part || typeof part !== 'object') {
        return 0;
    }
    if (typeof part[0] === 'number') {
        return 4 * part.length;
    }
    const names = Object.keys(part).filter((name) => name !== 'role' && name !== 'type');
    return names.reduce((sum, name) => sum + letters(part[name]), 0);
}

function held(customer, kind) {
    return counts.get(`held|${customer}|${kind}`) || 0;
}

// Write down that it begins, and pass it on.
function send(r, ask) {
    job.per = ask.n || 1;  // answers to a prompt
    job.each = answers(ask) > 1 ? {} : null;  // what each answer has used, where there are several
    job.plain = !(ask.stream_options && ask.stream_options.include_usage);
    if (ask.stream) {
        ask.stream_options = Object.assign({}, config.stream_options, {include_usage: true});
        Object.assign(ask, config.stream);
    }
    const at = new Date(job.at).toISOString();
    write(job, {event: 'begin', at: at, route: job.route, key: job.key});
    job.begun = true;
    r.variables.job = JSON.stringify(job);
    running.set(job.id, r.variables.job);
    r.variables.body = JSON.stringify(ask);
    r.internalRedirect(ask.stream ? '@stream' : '@whole');
}

// The list of models, as the server gives it.
function models(r) {
    counted(r, () => r.internalRedirect('@models'));
}

// What is wrong with what is asked, or ''.
function shape(ask) {
    if (!ask || typeof ask !== 'object' || Array.isArray(ask)) {
        return 'The body is not a JSON object.';
    }
    const known = (name) => /^[a-z_]+$/.test(name) && FIELDS.includes(` ${name} `);
    const odd = Object.keys(ask).find((name) => !known(name));
    if (odd !== undefined) {
        return `The field ${JSON.stringify(odd.slice(0, 80))} is not accepted here.`;
    }
    if (ask.stream != null && typeof ask.stream !== 'boolean') {
        return 'stream must be true or false.';
    }
    const wrong = NUMBERS.find((name) => ask[name] != null
        && !(Number.isInteger(ask[name]) && ask[name] > 0));
    if (wrong) {
        return `${wrong} must be a whole number above 0.`;
    }
    if (answers(ask) > me.in_flight) {
        return `These are more answers than there may be at a time (${me.in_flight}).`;
    }
    if (answers(ask) > me.max_tokens) {
        return `These are more answers than there may be tokens (${me.max_tokens}).`;
    }
    return '';
}

// How many answers it asks for; prompts, too, may be several.
function answers(ask) {
    return Math.max(ask.n || 1, ask.best_of || 1) * (several(ask) ? ask.prompt.length : 1);
}

function several(ask) {
    return Array.isArray(ask.prompt) && ask.prompt.length > 0 && typeof ask.prompt[0] !== 'number';
}

// Cap the length of each answer, or fill it in.
function cap(ask, most) {
    if (job.route === '/v1/completions') {  // which knows one name for it only
        ask.max_tokens = ask.max_tokens || ask.max_completion_tokens || most;
        delete ask.max_completion_tokens;
    }
    const caps = ['max_tokens', 'max_completion_tokens'].filter((name) => ask[name] != null);
    (caps.length ? caps : ['max_tokens']).forEach((name) => {
        ask[name] = Math.min(ask[name] || most, most);
    });
    if (ask.min_tokens != null) {
        ask.min_tokens = Math.min(Number(ask.min_tokens) || 0, most);
    }
}

// A piece of a streamed answer: counted, and passed on without delay, whole lines at a time.
function stream(r, data, flags) {
    job = job || JSON.parse(r.variables.job);
    if (!parts.length && single(r, data, flags)) {
        return note();
    }
    const end = flags.last ? data.length : data.lastIndexOf(10) + 1;
    if (!end && !flags.last) {
        return collect(data, LONGEST_LINE);
    }
    let ready = Buffer.concat(parts.concat([data.slice(0, end)]));
    parts = [];
    if (end < data.length) {
        collect(data.slice(end), LONGEST_LINE);
    }
    const text = ready.toString();
    const seen = text.split('\n').map(event).join('\n');
    if (seen !== text) {
        ready = Buffer.from(seen);
    }
    note();
    if (ready.length || flags.last) {
        r.sendBuffer(ready, flags);
    }
}

// The short way, for one event that is there whole, as most are: without making strings of it,
// since all memory that is used here is free only when the answer ends. Within a text each
// quotation mark has a backslash before it, so none looks like the names that are looked for.
function single(r, data, flags) {
    const end = data.length - 3;
    if (job.each || end < 0) {
        return false;
    }
    if (data.indexOf(10) !== end + 1 || data[end] !== BRACE || data[end + 2] !== 10) {
        return false;
    }
    const usage = data.lastIndexOf(',"usage":{'), timings = data.lastIndexOf(',"timings":{');
    const at = Math.max(usage, timings);
    if (at < 0) {
        const word = data.indexOf('"content":"');
        if (word < 0 || data[word + 11] === QUOTE) {
            return false;
        }
        tokens(job.input, job.cached, job.output + 1);
        r.sendBuffer(data, flags);
        return true;
    }
    const cached = usage < 0 ? number(data, '"cache_n":', at) : job.cached;
    const read = number(data, usage < 0 ? '"prompt_n":' : '"prompt_tokens":', at);
    const output = number(data, usage < 0 ? '"predicted_n":' : '"completion_tokens":', at);
    const flat = data[end - 1] === BRACE && data.indexOf(BRACE, at) === end - 1;
    const both = usage >= 0 && timings >= 0;
    if (both || !flat || Math.min(cached, read, output) < 0 || data.indexOf('"choices":[]') >= 0) {
        return false;
    }
    tokens(usage < 0 ? read + cached : read, cached, output);
    r.sendBuffer(data.slice(0, at));
    r.sendBuffer('}\n\n', flags);
    return true;
}

// The whole number after a name, or -1.
function number(data, name, from) {
    let at = data.indexOf(name, from), found = 0;
    if (at < 0) {
        return -1;
    }
    at += name.length;
    const first = at;
    while (data[at] >= 48 && data[at] <= 57) {
        found = 10 * found + data[at] - 48;
        at += 1;
    }
    return at > first ? found : -1;
}

// Count what a line says, and return what the customer is to see of it.
function event(line) {
    if (!line.startsWith('data:')) {
        return line;
    }
    let said;
    try {
        said = JSON.parse(line.slice(5));
        tally(said);
    } catch (error) {
        return line;  // the end of the stream, or nothing that can be counted
    }
    if (said.usage && Array.isArray(said.choices) && !said.choices.length) {
        return job.plain ? '' : line;  // the usage at the end, if the customer asked for it
    }
    if (said.usage === undefined && said.timings === undefined) {
        return line;
    }
    delete said.usage;  // what only the door asked for
    delete said.timings;
    return `data: ${JSON.stringify(said)}`;
}

// Now and then, book what a stream has used, and keep it where a new worker finds it.
function note() {
    const now = Date.now();
    if (now >= job.saved + 100) {
        job.saved = now;
        book(job);
        running.set(job.id, JSON.stringify(job));
    }
}

// An answer in one piece: counted when it is whole, also if nobody waits for it any more.
function whole(r, data, flags) {
    job = job || JSON.parse(r.variables.job);
    collect(data, LONGEST_ANSWER);
    if (flags.last) {
        const all = Buffer.concat(parts);
        try {
            tally(JSON.parse(all.toString()));
        } catch (error) {
            // it is no JSON: an error of the server, which costs nothing
        }
        running.set(job.id, JSON.stringify(job));
        r.sendBuffer(all, flags);
    }
}

// Keep a copy of what is not whole yet.
function collect(data, most) {
    parts.push(Buffer.from(data));
    if (parts.reduce((sum, part) => sum + part.length, 0) > most) {
        throw new Error('the answer is too long');
    }
}

// The server's own count where it says one (vLLM: usage, llama.cpp: timings); else its pieces.
function tally(said) {
    const usage = said.usage, timings = said.timings;
    const choices = Array.isArray(said.choices) ? said.choices : [];
    const one = job.each && choices[0] ? choices[0].index : null;  // of which answer it speaks
    if (usage && typeof usage === 'object') {
        const details = usage.prompt_tokens_details || {};
        const cached = details.cached_tokens || (one === null ? job.cached : 0);
        share(one, usage.prompt_tokens, cached, usage.completion_tokens);
    } else if (timings && timings.predicted_n !== undefined) {
        const cached = timings.cache_n || 0;
        share(one, timings.prompt_n + cached, cached, timings.predicted_n);
    } else {
        const words = choices.filter((choice) => {
            const delta = choice && (choice.delta || choice) || {};
            return delta.content || delta.text || delta.reasoning_content || delta.tool_calls;
        });
        tokens(job.input, job.cached, job.output + words.length);
    }
}

// Of several answers, a stream says what each has used: the sum is what the request has. A prompt
// is read once for all its answers, and those of one prompt come one after the other.
function share(one, input, cached, output) {
    if (one === null) {
        return tokens(input, cached, output);
    }
    const counted = [input, cached, output];
    if (!counted.every((value) => Number.isInteger(value) && value >= 0)) {
        return;
    }
    job.each[one] = counted;
    const sum = [0, 0, 0], read = {};
    Object.keys(job.each).forEach((at) => {
        sum[2] += job.each[at][2];
        read[Math.floor(at / job.per)] = job.each[at];
    });
    Object.keys(read).forEach((at) => {
        sum[0] += read[at][0];
        sum[1] += read[at][1];
    });
    tokens.apply(null, sum);
}

// Nothing but whole numbers that can be true gets into a bill.
function tokens(input, cached, output) {
    const sane = (value, most) => (Number.isInteger(value) && value >= 0 && value <= most);
    job.input = sane(input, 1e9) ? input : job.input;
    job.cached = Math.min(sane(cached, 1e9) ? cached : job.cached, job.input);
    job.output = sane(output, 1e9) ? output : job.output;
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
    const one = job || (r.variables.job ? JSON.parse(r.variables.job) : null);
    if (one) {
        finish(one, Number(r.variables.status), r.variables.request_completion === 'OK');
    }
    return '';
}

// Book what a request used, write its last line, and give its places back.
function finish(one, status, complete) {
    const now = Date.now();
    const ttft = one.first ? (one.first - one.at) / 1000 : null;
    if (one.begun) {
        if (one.output && !one.input) {
            one.input = one.read;  // this server does not say what it read until an answer is whole
        }
        try {
            write(one, {
                event: 'end', at: new Date(now).toISOString(), status: status, complete: complete,
                input: one.input, cached: one.cached, output: one.output, usd: dollars(one),
                seconds: (now - one.at) / 1000, ttft: ttft,
            });
        } catch (error) {  // the disk is full: tick() tries again
            one.ended = {status: status, complete: complete};
            running.set(one.id, JSON.stringify(one));
            return;
        }
        book(one);
        count(series('door_seconds_total', {customer: one.customer}), (now - one.at) / 1000);
    }
    if (running.delete(one.id)) {
        counts.incr(flying(one.customer), -one.places, 0);
        hold(one, -1);
    }
    if (ttft !== null) {
        const le = TTFT_S.find((limit) => ttft <= limit) || '+Inf';
        count(series('door_first_token_seconds_bucket', {le: le}), 1);
        count('door_first_token_seconds_sum', ttft);
    }
}

// Add what a request used since the last time to its customer's sums.
function book(one) {
    const name = one.customer, now = Date.now();
    const sums = {
        input: one.input, cached: one.cached, output: one.output, dollars: dollars(one),
    };
    const more = {};
    Object.keys(sums).forEach((kind) => {
        more[kind] = sums[kind] - one.booked[kind];
    });
    one.booked = sums;
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
    const read = (one.input - one.cached) * usd.input + one.cached * usd.cached;
    return (read + one.output * usd.output) / 1e6;
}

// Twice a second: end what a killed worker left, book what runs, and save it all.
function tick() {
    restore();
    const owner = Number(process.env.DOOR_OWNER || 0);  // none if it was started at boot
    if (owner && !alive(owner)) {
        try {  // without a master, this worker is what is left
            process.kill(process.ppid > 1 ? process.ppid : process.pid, 'SIGTERM');
        } catch (error) {
            // root's master, which only root may end
        }
    }
    running.items(1e6).forEach((item) => {
        const one = JSON.parse(item[1]);
        if (one.ended) {
            finish(one, one.ended.status, one.ended.complete);
        } else if (!alive(one.pid)) {
            finish(one, 499, false);
        }
    });
    const state = {log: ledger(Date.now()), counts: {}};
    state.at = size(state.log);
    state.running = running.items(1e6).map((item) => JSON.parse(item[1]));
    state.running.forEach((one) => {
        one.usd = dollars(one);
    });
    const today = [stamp(Date.now(), 'day'), stamp(Date.now(), 'month')];
    counts.items(1e6).forEach((item) => {
        const part = item[0].split('|');
        if (part[0] === 'used' && !today.includes(part[2])) {
            counts.delete(item[0]);  // of a day or a month that is over
        } else if (!/^(ready|held|door_requests_in_flight)/.test(item[0])) {
            state.counts[item[0]] = item[1];
        }
    });
    const now = JSON.stringify(state);
    if (now !== read(STATE)) {  // an idle door leaves the disk alone
        fs.writeFileSync(`${STATE}.new`, now, {mode: 0o600});
        fs.renameSync(`${STATE}.new`, STATE);
    }
}

function read(path) {
    try {
        return fs.readFileSync(path, 'utf8');
    } catch (error) {
        return '';
    }
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
    state.running.filter((one) => one.begun).forEach((one) => {
        open[one.id] = one;
    });
    const log = ledger(Date.now());
    if (size(log) && text(log, size(log) - 1) !== '\n') {
        fs.appendFileSync(HOME + log, '\n');  // a power failure cut its last line
    }
    const logs = [[state.log, state.at]];
    if (state.log !== log) {
        logs.push([log, 0]);
    }
    logs.forEach((part) => lines(part[0], part[1]).forEach((line) => {
        if (line.event === 'begin') {
            open[line.id] = open[line.id] || Object.assign(blank(), {
                id: line.id, customer: line.customer, key: line.key, log: part[0],
                at: Date.parse(line.at),
            });
        } else {
            book(Object.assign(blank(), line, {booked: (open[line.id] || blank()).booked}));
            delete open[line.id];
        }
    }));
    Object.keys(open).forEach((id) => finish(open[id], 499, false));
}

function blank() {
    return {
        input: 0, cached: 0, output: 0, first: 0, places: 1, begun: true, read: 0,
        booked: {input: 0, cached: 0, output: 0, dollars: 0},
    };
}

// The lines of a ledger from a position on.
function lines(log, from) {
    return text(log, from).split('\n').map((line) => {
        try {
            return JSON.parse(line);
        } catch (error) {
            return null;  // a power failure cut it
        }
    }).filter((line) => line && line.id);
}

function text(log, from) {
    const data = Buffer.alloc(Math.max(0, size(log) - from));
    if (data.length) {
        const file = fs.openSync(HOME + log, 'r');
        fs.readSync(file, data, 0, data.length, from);
        fs.closeSync(file);
    }
    return data.toString();
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
        return /not permitted/.test(error.message);  // it is there, and another user's
    }
}

// What this customer has used of a budget.
function used(budget, now) {
    const what = budget.split('_a_');
    return counts.get(`used|${me.customer}|${stamp(now, what[1])}|${what[0]}`) || 0;
}

function flying(customer) {
    return series('door_requests_in_flight', {customer: customer});
}

function count(name, more) {
    counts.incr(name, more, 0);
}

function series(name, labels) {
    const pairs = Object.keys(labels).map((label) => `${label}="${labels[label]}"`);
    return `${name}{${pairs.join(',')}}`;
}

function refuse(r, limit, wait_s, message) {
    count(series('door_refused_total', {customer: me.customer, reason: limit}), 1);
    r.headersOut['Retry-After'] = String(Math.max(1, Math.ceil(wait_s)));
    const budget = limit.startsWith('tokens') || limit.startsWith('dollars');
    if (budget) {
        r.headersOut['X-Should-Retry'] = 'false';  // OpenAI's clients would repeat it twice
    }
    const code = budget ? 'insufficient_quota' : 'rate_limit_exceeded';
    problem(r, 429, budget ? 'insufficient_quota' : 'requests', code, message);
}

// An error in OpenAI's form.
function problem(r, status, type, code, message) {
    r.headersOut['Content-Type'] = 'application/json';
    const error = {message: message, type: type, param: null, code: code};
    r.return(status, JSON.stringify({error: error}));
}

// What the customer has used, and may use.
function usage(r) {
    counted(r, (now) => {
        const answer = {customer: me.customer};
        BUDGETS.forEach((name) => {
            answer[name] = {used: used(name, now), limit: me[name]};
        });
        r.return(200, JSON.stringify(answer));
    });
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

export default {admit, customer, ended, enter, metrics, models, stream, tick, usage, whole};
