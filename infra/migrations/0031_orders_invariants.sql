-- Orders: what `millrace verify` asks beside the log itself.

CREATE VIEW stock_ledger_mismatches AS
SELECT coalesce(s.tenant, l.tenant) AS tenant, coalesce(s.sku, l.sku) AS sku,
       coalesce(s.on_hand, 0) AS on_hand, coalesce(l.on_hand, 0) AS ledger_on_hand,
       coalesce(s.reserved, 0) AS reserved, coalesce(l.reserved, 0) AS ledger_reserved,
       coalesce(l.versions_missing, 0) AS versions_missing
FROM stock s
FULL JOIN (
    SELECT tenant, sku,
           coalesce(sum(quantity) FILTER (WHERE outcome IN ('received', 'restocked')), 0)::bigint AS on_hand,
           (coalesce(sum(quantity) FILTER (WHERE outcome = 'reserved'), 0)
            - coalesce(sum(quantity) FILTER (WHERE outcome = 'released'), 0))::bigint AS reserved,
           max(version) - count(*) AS versions_missing
    FROM stock_ledger GROUP BY 1, 2) l ON l.tenant = s.tenant AND l.sku = s.sku
WHERE s.sku IS NULL OR l.sku IS NULL OR s.on_hand <> l.on_hand OR s.reserved <> l.reserved OR l.versions_missing <> 0;
COMMENT ON VIEW stock_ledger_mismatches IS 'SKUs whose stock is not what their ledger adds up to, or whose ledger lacks a version: always empty';
COMMENT ON COLUMN stock_ledger_mismatches.ledger_on_hand IS 'Units received and restocked';
COMMENT ON COLUMN stock_ledger_mismatches.ledger_reserved IS 'Units reserved less units released';
COMMENT ON COLUMN stock_ledger_mismatches.versions_missing IS 'How many versions lie between the first and the last without a row';
