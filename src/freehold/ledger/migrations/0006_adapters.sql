-- Adapters that were added to an endpoint while it served: what each of its names means now.

create table adapter (
  endpoint text not null,
  name text not null,
  content text not null,              -- JSON of a fleet.roster.Alias
  primary key (endpoint, name)
) strict;
