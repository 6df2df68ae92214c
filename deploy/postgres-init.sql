-- Dagster's storage lives on the same server, in a database of its own.
CREATE DATABASE dagster OWNER siglip;
