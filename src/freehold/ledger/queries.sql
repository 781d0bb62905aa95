-- name: insert_usage
-- {columns} are those of a UsageRecord. Nothing when the request is already there: recovery may repeat itself.
insert into usage (number, salt, {columns}) values (?, ?, {marks}) on conflict (request) do nothing;

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
insert into key (id, hash, name, endpoints, created_ns, expires_ns, content_days) values (?, ?, ?, ?, ?, ?, ?);

-- name: revoke_key
update key set revoked_ns = ? where id = ? and revoked_ns is null;

-- name: keys
select hash, id, name, endpoints, created_ns, expires_ns, revoked_ns, content_days from key order by created_ns;

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
select subject, seconds from (
  select seq, json_extract(content, '$.subject') as subject, json_extract(content, '$.detail.seconds') as seconds,
    row_number() over (partition by json_extract(content, '$.subject') order by seq desc) as age
  from event where json_extract(content, '$.kind') = 'replica.ready'
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

-- name: usage_totals
-- Money in two parts, because a sum of pico ends at 9.2 million units of the currency.
-- {what} is one of three expressions fixed in report.py, never a caller's text.
select {what} as name, count(*) as requests, sum(outcome = 'ok') as ok, sum(outcome = 'cut') as cut,
  sum(outcome = 'error') as error, sum(prompt_tokens) as prompt_tokens, sum(cached_tokens) as cached_tokens,
  sum(completion_tokens) as completion_tokens, sum(lower_bound) as lower_bound,
  sum(charge_pico / 1000000) as charge_micro, sum(charge_pico % 1000000) as charge_rest
from usage left join key on key.id = usage.key
where started_ns >= ? and started_ns < ?
group by 1 order by 1;

-- name: occupancy_totals
select endpoint, phase, sum(lasted_ns) as lasted_ns, sum(pico / 1000000) as micro, sum(pico % 1000000) as rest
from occupancy group by 1, 2 order by 1, 2;

-- name: tenures
select id, host, currency, pico_per_hour, began_ns, lasted_ns from tenure order by began_ns;
