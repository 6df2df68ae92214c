INSERT INTO query_log (text) VALUES ('a red car');
