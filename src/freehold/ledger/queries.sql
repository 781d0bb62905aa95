-- name: insert_usage
-- Columns are filled by name from a UsageRecord. Ignored when the request is already there: recovery may repeat itself.
insert or ignore into usage ({columns}) values ({marks});

-- name: insert_key
insert into key (id, hash, name, endpoints, created_ns, expires_ns) values (?, ?, ?, ?, ?, ?);

-- name: revoke_key
update key set revoked_ns = ? where id = ? and revoked_ns is null;

-- name: keys
select hash, id, name, endpoints, created_ns, expires_ns, revoked_ns from key order by created_ns;

-- name: pin
select digest from pin where subject = ?;

-- name: set_pin
-- On first use: a pin that is there stays.
insert into pin (subject, digest, pinned_ns, pinned_by) values (?, ?, ?, ?)
on conflict (subject) do nothing;

-- name: replace_pin
-- Somebody has looked at what changed and wants it.
insert or replace into pin (subject, digest, pinned_ns, pinned_by) values (?, ?, ?, ?);

-- name: last_event
select seq, hash from event order by seq desc limit 1;

-- name: insert_event
insert into event (seq, salt, content, commitment, hash) values (?, ?, ?, ?, ?);

-- name: events
select seq, salt, content, commitment, hash from event order by seq;

-- name: last_events
select content from (select seq, content from event where content is not null order by seq desc limit ?) order by seq;

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
select * from usage where request = ?;

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
