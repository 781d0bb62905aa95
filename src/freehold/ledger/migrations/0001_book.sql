-- The book, first edition. Migrations are applied in the order of their numbers, each once (pragma user_version).

create table key (
  id text primary key,
  hash blob not null unique,          -- sha256 of the secret; the secret itself is kept nowhere
  name text not null,
  endpoints text not null,            -- glob patterns, a space between
  created_ns integer not null,
  expires_ns integer,
  revoked_ns integer
) strict;

create table usage (
  request text primary key,           -- the id the caller saw; makes moving a record from the journal idempotent
  key text not null,
  endpoint text not null,
  kind text not null,                 -- chat, completion, probe
  stream integer not null,
  started_ns integer not null,
  status integer not null,
  outcome text not null,              -- ok, cut, error
  prompt_tokens integer not null,
  completion_tokens integer not null,
  cached_tokens integer not null,
  lower_bound integer not null,       -- 1: the engine produced at least these tokens
  queue_ms real not null,
  first_byte_ms real,
  total_ms real not null,
  charge_pico integer not null,
  machine_pico integer not null
) strict;
create index usage_started on usage (started_ns);

-- One row for each time the daemon had this machine. Its cost is what occupancy must add up to.
create table tenure (
  id text primary key,
  host text not null,
  currency text not null,
  pico_per_hour integer not null,
  began_ns integer not null,
  lasted_ns integer not null
) strict;

-- What replicas did with the machine's time, by hour. Endpoint '' with phase 'vacant': nobody was there.
create table occupancy (
  tenure text not null references tenure (id),
  endpoint text not null,
  phase text not null,                -- starting, serving, idle, stopping, vacant
  hour_ns integer not null,
  lasted_ns integer not null,
  pico integer not null,
  primary key (tenure, endpoint, phase, hour_ns)
) strict;

-- Weights by the place they are used from; the digest is sha256 over all files' digests, sizes and names.
create table pin (
  subject text primary key,
  digest text not null,
  pinned_ns integer not null,
  pinned_by text not null
) strict;

-- commitment = sha256(salt || content); hash = sha256(previous hash || seq || commitment).
-- Retention may one day empty salt and content; commitment and hash stay, so the chain still holds.
create table event (
  seq integer primary key,
  salt blob,
  content text,
  commitment blob not null,
  hash blob not null
) strict;
