-- name: insert_usage
-- {columns} are those of a UsageRecord; {rows} as many as trail.py has. Nothing when the request is already there: recovery may repeat itself.
insert into usage (number, salt, {columns}) values {rows} on conflict (request) do nothing;

-- name: unsealed
select number, salt, {columns} from usage where number > ? order by number;

-- name: usage
select number, salt, {columns} from usage order by number;

-- name: last_sealed
select max(last) from seal;

-- name: insert_seal
insert into seal (event, first, last, leaves) values (?, ?, ?, ?);

-- name: leaves
select leaves from seal where first = ?;

-- name: seals
select event, first, last from seal order by first;

-- name: content_of
select salt, question, answer, until_ns from content where request = ?;

-- name: insert_content
insert into content (request, until_ns, salt, question, answer) values (?, ?, ?, ?, ?)
on conflict (request) do nothing;

-- name: lost_content
-- Rows that say something was kept which is not there: a crash came before it was written.
select number from usage where number > ? and content_hash <> '' and request not in (select request from content);

-- name: stray_content
select request from content where request not in (select request from usage where content_hash <> '');

-- name: old_usage
-- {whose} is one of two conditions fixed in deletion.py.
select number from usage where started_ns < ? and number <= ? and {whose} order by number limit ?;

-- name: old_content
select usage.number from content join usage using (request)
where {which} < ? and usage.number <= ? and {whose} order by usage.number limit ?;

-- name: old_events
-- Seals and deletions stay: they are what the rest is checked against.
select seq from event where content is not null and json_valid(content) and json_extract(content, '$.at_ns') < ?
and json_extract(content, '$.kind') not in ('usage.sealed', 'trail.deleted') order by seq limit ?;

-- name: delete_usage
delete from usage where number = ?;

-- name: delete_content
delete from content where request = (select request from usage where number = ?);

-- name: empty_event
update event set salt = null, content = null where seq = ?;

-- name: about
-- What there is one of: the book's id, the configuration it saw last.
select value from about where name = ?;

-- name: set_about
insert or replace into about (name, value) values (?, ?);

-- name: insert_key
insert into key (id, hash, name, endpoints, created_ns, expires_ns, content_days, "group", "grant")
values (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: end_keys
-- Another one takes their place; those that end sooner still do.
update key set expires_ns = min(coalesce(expires_ns, ?1), ?1) where name = ?2 and revoked_ns is null;

-- name: revoke_key
update key set revoked_ns = ? where id = ? and revoked_ns is null;

-- name: keys
select hash, id, name, endpoints, created_ns, expires_ns, revoked_ns, content_days, "group", "grant" from key order by created_ns;

-- name: pin
select digest from pin where subject = ?;

-- name: set_pin
-- On first use: a pin that is there stays.
insert into pin (subject, digest, pinned_ns, pinned_by) values (?, ?, ?, ?)
on conflict (subject) do nothing;

-- name: replace_pin
-- Somebody has looked at what changed and wants it.
insert or replace into pin (subject, digest, pinned_ns, pinned_by) values (?, ?, ?, ?);

-- name: verified
select digest, looks, at_ns from verified where subject = ?;

-- name: forget_verified
delete from verified where subject = ?;

-- name: set_verified
insert or replace into verified (subject, digest, looks, at_ns) values (?, ?, ?, ?);

-- name: last_event
select seq, hash from event order by seq desc limit 1;

-- name: insert_event
insert into event (seq, salt, content, commitment, hash) values (?, ?, ?, ?, ?);

-- name: events
select seq, salt, cast(content as blob), commitment, hash from event order by seq;

-- name: later_events
select seq, salt, cast(content as blob), commitment, hash from event where seq > ? order by seq;

-- name: last_time
select json_extract(content, '$.at_ns') from event
where content is not null and json_valid(content) order by seq desc limit 1;

-- name: newest_events
select seq, cast(content as blob) from event where content is not null order by seq desc;

-- name: event_hash
select hash from event where seq = ?;

-- name: recent_starts
-- How long the last starts of each endpoint took; the newest last.
select endpoint, seconds from (
  select seq, endpoint, seconds, row_number() over (partition by endpoint order by seq desc) as age from (
    select seq, coalesce(json_extract(content, '$.detail.endpoint'), json_extract(content, '$.subject')) as endpoint,
      json_extract(content, '$.detail.seconds') as seconds
    from event where json_extract(content, '$.kind') = 'replica.ready'
  )
) where age <= ? order by seq;

-- name: save_tenure
insert into tenure (id, host, currency, pico_per_hour, began_ns, lasted_ns) values (?, ?, ?, ?, ?, ?)
on conflict (id) do update set lasted_ns = excluded.lasted_ns;

-- name: add_occupancy
insert into occupancy (tenure, endpoint, phase, hour_ns, lasted_ns, pico) values (?, ?, ?, ?, ?, ?)
on conflict (tenure, endpoint, phase, hour_ns)
do update set lasted_ns = lasted_ns + excluded.lasted_ns, pico = pico + excluded.pico;

-- name: usage_of_request
select number, salt, {columns} from usage where request = ?;

-- name: usage_of_caller
-- By our id or the caller's own, which may be that of several; without an index, for it would cost each request.
select number, salt, {columns} from usage where request = ?1 or caller_request = ?1 order by number;

-- name: usage_totals
-- Money in two parts, because a sum of pico ends at 9.2 million units of the currency.
-- {what} is one of the expressions fixed in report.py, never a caller's text.
select {what} as name, count(*) as requests, sum(outcome = 'ok') as ok, sum(outcome = 'cut') as cut,
  sum(outcome = 'error') as error, sum(prompt_tokens) as prompt_tokens, sum(cached_tokens) as cached_tokens,
  sum(completion_tokens) as completion_tokens, sum(reasoning_tokens) as reasoning_tokens,
  sum(lower_bound) as lower_bound,
  sum(charge_pico / 1000000) as charge_micro, sum(charge_pico % 1000000) as charge_rest
from usage left join key on key.id = usage.key
where started_ns >= ? and started_ns < ?
group by 1 order by 1;

-- name: spent
-- What keys and groups have used of their day and month; money in two parts, as above.
select key, "group", sum(tokens * today), sum(micro * today), sum(rest * today), sum(tokens), sum(micro), sum(rest)
from (
  select key, "group", prompt_tokens + completion_tokens + held_tokens as tokens, started_ns >= ?1 as today,
    charge_pico / 1000000 + held_pico / 1000000 as micro, charge_pico % 1000000 + held_pico % 1000000 as rest
  from usage where started_ns >= ?2
) group by 1, 2;

-- name: newest_usage
select max(started_ns) from usage;

-- name: add_boot
insert or ignore into boot (began_ns) values (?);

-- name: save_counts
insert into counted values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (boot_ns, endpoint, replica, run) do update set
  at_ns = excluded.at_ns, prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
  cached_tokens = excluded.cached_tokens, in_flight = excluded.in_flight, final = excluded.final
where excluded.at_ns >= at_ns;

-- name: delete_counts
-- Readings that can be compared with nothing any more.
delete from counted where boot_ns < ?;

-- name: counted
select boot_ns, endpoint, replica, run, at_ns, prompt_tokens, completion_tokens, in_flight, final from counted;

-- name: recorded
-- What the records say of each run: of requests that had ended at its reading, and of those that were under way then.
-- Without a replica are those that a daemon's death cut: which one they were at is not known.
with records as (
  select usage.*, prompt_tokens + repeated_tokens + completion_tokens as tokens,
    substr(endpoint, 1, instr(endpoint || ':', ':') - 1) as base,  -- an adapter's name begins with its endpoint's
    (select max(began_ns) from boot where began_ns <= started_ns) as boot_ns,
    started_ns + cast(total_ms * 1000000 as integer) as ended_ns
  from usage where run > 0 or (replica = '' and lower_bound)
)
select records.boot_ns, records.base, records.replica, records.run,
  count(*) filter (where ended) as requests, count(*) filter (where ended and kind = 'probe') as probes,
  ifnull(sum(records.prompt_tokens + repeated_tokens) filter (where ended), 0) as prompt_tokens,
  ifnull(sum(records.completion_tokens) filter (where ended), 0) as completion_tokens,
  count(*) filter (where ended and lower_bound) as cut,
  count(*) filter (where lower_bound and held_tokens = 0) as unknown,
  ifnull(sum(held_tokens) filter (where ended), 0) as held_tokens,
  ifnull(sum(tokens + held_tokens) filter (where not ended), 0) as under_way_tokens
from (
  select records.*, at_ns is null or final or ended_ns <= at_ns as ended
  from records left join counted on counted.boot_ns = records.boot_ns and counted.endpoint = records.base
    and counted.replica = records.replica and counted.run = records.run
  where at_ns is null or final or started_ns <= at_ns
) as records
where records.boot_ns is not null
group by 1, 2, 3, 4;

-- name: boots
select began_ns from boot order by began_ns;

-- name: occupancy_totals
-- By replica; demo+2, who took the place of demo, counts as demo.
select substr(endpoint, 1, instr(endpoint || '+', '+') - 1) as endpoint, phase, sum(lasted_ns) as lasted_ns,
  sum(pico / 1000000) as micro, sum(pico % 1000000) as rest
from occupancy group by 1, 2 order by 1, 2;

-- name: tenures
select id, host, currency, pico_per_hour, began_ns, lasted_ns from tenure order by began_ns;

-- name: insert_measurement
insert into measurement ({measured}) values ({values});

-- name: measurements
-- The newest of each model by its weights, engine, cards and machine; the newest first.
select {measured} from (
  select *, row_number() over (partition by model, engine, card, tp, pp, host order by at_ns desc, rowid desc) as age
  from measurement
) where age = 1 order by at_ns desc;

-- name: newest_runs
-- The columns of a paces.Run.
select at_ns, endpoint, replica, run, model, catalogue, scheme, engine, engine_version, options, card, host, tp, pp
from measurement order by rowid desc limit ?;

-- name: newest_requests
-- The columns of a paces.Request, of requests that a process of ours answered.
select endpoint, replica, run, started_ns, queue_ms, first_byte_ms, total_ms, prompt_tokens, completion_tokens,
  stream and outcome = 'ok' and kind in ('chat', 'completion') and repeated_tokens = 0 as fit
from usage where run > 0 order by started_ns desc limit ?;

-- name: has_measurements
select 1 from sqlite_master where name = 'measurement';

-- name: adapters
select endpoint, name, content from adapter;

-- name: set_adapter
insert or replace into adapter (endpoint, name, content) values (?, ?, ?);

-- name: remove_adapter
delete from adapter where endpoint = ? and name = ?;

-- name: set_scores
insert into imported_scores (name, at_ns, actor, content) values (?, ?, ?, ?)
on conflict (name) do update set at_ns = excluded.at_ns, actor = excluded.actor, content = excluded.content;

-- name: remove_scores
delete from imported_scores where name = ?;

-- name: imported_scores
select name, at_ns, actor, content from imported_scores order by name;

-- name: has_imported_scores
select 1 from sqlite_master where name = 'imported_scores';
