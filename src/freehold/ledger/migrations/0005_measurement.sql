-- What each start of an engine took, beside what its plan said: one row a start.

create table measurement (
  at_ns integer not null,
  endpoint text not null,
  replica text not null,
  run integer not null,
  engine text not null,
  engine_version text not null,
  model text not null,                -- the digest of its weights
  catalogue text not null,            -- what the catalogue calls the model
  build text not null,
  scheme text not null,               -- its precision, as the catalogue calls it
  host text not null,
  card text not null,                 -- '': the CPU alone
  tp integer not null,
  pp integer not null,
  context integer not null,
  parallel integer not null,
  kv_dtype text not null,
  options text not null,              -- JSON of those that change memory
  predicted text not null,            -- JSON of a types.Stated, as are the next; bytes and tokens
  stated text not null,
  start_s text not null               -- JSON: seconds by stage
) strict;
create index measurement_by_model on measurement (model, at_ns);
