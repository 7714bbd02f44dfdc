-- The gateway repeats decisions to whoever sent the transaction: of the ledger it reads what an answer tells, of
-- one tenant and its merchants at a time. Neither cards nor customers nor amounts.
GRANT USAGE ON SCHEMA public TO millrace_gateway;
GRANT SELECT (event_id, tenant, merchant_id, occurred_at, decision, risk, reasons, fired_rules, rules_version,
              model_version, code_version, source_partition, source_offset)
    ON card_ledger TO millrace_gateway;
CREATE POLICY answered ON card_ledger FOR SELECT TO millrace_gateway USING (
    tenant = (SELECT millrace_tenant())
    AND ((SELECT millrace_objects('merchant')) IS NULL
         OR merchant_id = ANY ((SELECT millrace_objects('merchant'))::text[])));
