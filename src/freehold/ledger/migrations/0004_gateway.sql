-- Groups and limits of keys, more about each request, and what engines counted themselves.

alter table key add column "group" text not null default '';
alter table key add column "grant" text not null default '{}';    -- JSON of a types.Grant

alter table usage add column "group" text not null default '';    -- from here on: see ledger/chain.py for their hashes
alter table usage add column caller_request text not null default '';
alter table usage add column asked text not null default '';
alter table usage add column replica text not null default '';
alter table usage add column run integer not null default 0;
alter table usage add column served_model text not null default '';
alter table usage add column policy text not null default '';
alter table usage add column reasoning_tokens integer not null default 0;
alter table usage add column wake_ms real not null default 0.0;
alter table usage add column held_tokens integer not null default 0;
alter table usage add column held_pico integer not null default 0;

-- Each time that somebody opened the book to write. Runs count from 1 with each daemon: this tells them apart, since a
-- request ends with the daemon that took it.
create table boot (began_ns integer primary key) strict;

-- The last reading of each engine process's own counters.
create table counted (
  endpoint text not null,
  replica text not null,
  run integer not null,
  boot_ns integer not null,
  at_ns integer not null,
  prompt_tokens integer not null,
  completion_tokens integer not null,
  cached_tokens integer not null,
  in_flight integer not null,
  final integer not null,             -- 1: it was drained, and nothing came after
  primary key (boot_ns, endpoint, replica, run)
) strict;
