-- Scores that a company imported: its own, or what it has a licence for. The table as it was given, so that its hash
-- is that of the file and a later edition reads it by its own rules.

create table imported_scores (
  name text primary key,
  at_ns integer not null,
  actor text not null,
  content text not null
) strict;
