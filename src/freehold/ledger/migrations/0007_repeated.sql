-- vLLM counts a prompt once for each choice, and states it once.

alter table usage add column repeated_tokens integer not null default 0;
