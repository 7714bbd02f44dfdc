-- A row's neighbours in its chain, for the proof of a single row. Rows are appended in the order of their chains,
-- so a few numbers a block are enough, and writing a row costs nothing more.
CREATE INDEX card_ledger_by_place ON card_ledger USING brin (chain_sequence) WITH (pages_per_range = 32, autosummarize = on);
