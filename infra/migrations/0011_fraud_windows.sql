-- Card fraud: more windows of each card, and the forest's chance. Rows of before do not have them.

ALTER TABLE card_ledger
    ADD COLUMN count_10m     bigint CHECK (count_10m BETWEEN 1 AND count_1h),
    ADD COLUMN sum_10m_minor bigint CHECK (sum_10m_minor BETWEEN amount_minor AND sum_1h_minor),
    ADD COLUMN max_24h_minor bigint CHECK (max_24h_minor BETWEEN amount_minor AND sum_24h_minor),
    ADD COLUMN merchants_24h bigint CHECK (merchants_24h BETWEEN 0 AND count_24h),
    ADD COLUMN max_7d_minor  bigint CHECK (max_7d_minor BETWEEN max_24h_minor AND sum_7d_minor),
    ADD COLUMN fraud_chance  double precision CHECK (fraud_chance BETWEEN 0 AND 1);

COMMENT ON COLUMN card_ledger.count_10m IS 'As count_1h, over 10 minutes; null in decisions of before it was kept';
COMMENT ON COLUMN card_ledger.sum_10m_minor IS 'As sum_1h_minor, over 10 minutes; null in decisions of before it was kept';
COMMENT ON COLUMN card_ledger.max_24h_minor IS 'The largest amount of the card within 24 hours, in minor units; null in decisions of before it was kept';
COMMENT ON COLUMN card_ledger.merchants_24h IS 'How many known merchants the card paid within 24 hours; null in decisions of before it was kept';
COMMENT ON COLUMN card_ledger.max_7d_minor IS 'As max_24h_minor, over 7 days; null in decisions of before it was kept';
COMMENT ON COLUMN card_ledger.fraud_chance IS 'Chance of fraud by the forest; null where the model has none';
COMMENT ON COLUMN card_ledger.model_risk IS 'Risk by the model alone: 1 - (1 - rarity) * (1 - fraud_chance), where rarity is 0.25 for each factor of ten by which the transaction is rare; 0 without a model';
