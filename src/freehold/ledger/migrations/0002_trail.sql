-- Usage rows get numbers and salts, and are sealed: a batch of them becomes one Merkle root in an event.

create table about (name text primary key, value text not null) strict;
insert into about values ('book', lower(hex(randomblob(16))));   -- what checkpoints know this book by

alter table key add column content_days integer;

create table numbered (
  number integer primary key,         -- counts through, without a hole
  salt blob not null,                 -- leaf = sha256(0 || number || sha256(salt || JSON of what follows))
  request text not null unique,       -- the caller's x-request-id; makes moving a record from the journal idempotent
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
  machine_pico integer not null,
  content_hash text not null          -- of the question and answer that were kept; '' where none were
) strict;
insert into numbered
  select row_number() over (order by rowid), randomblob(16), request, key, endpoint, kind, stream, started_ns, status,
    outcome, prompt_tokens, completion_tokens, cached_tokens, lower_bound, queue_ms, first_byte_ms, total_ms,
    charge_pico, machine_pico, ''
  from usage order by rowid;
drop table usage;
alter table numbered rename to usage;
create index usage_started on usage (started_ns);

-- What an event `usage.sealed` rests on. It stays when retention takes the rows.
create table seal (
  event integer primary key,
  first integer not null unique,
  last integer not null,
  leaves blob not null                -- 32 bytes a row
) strict;

-- Questions and answers, of keys that ask for it only. usage.content_hash = sha256(salt || length || question || answer).
create table content (
  request text primary key,
  until_ns integer not null,
  salt blob not null,
  question blob not null,
  answer blob not null
) strict;
create index content_until on content (until_ns);
