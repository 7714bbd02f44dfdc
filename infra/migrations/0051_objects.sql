-- Whose a row is, within its tenant, wherever a row did not say so: fleets of trucks, customers, patients.

ALTER TABLE truck_positions ADD COLUMN fleet_id text;
ALTER TABLE latest_position ADD COLUMN fleet_id text;
ALTER TABLE truck_alerts ADD COLUMN fleet_id text;
COMMENT ON COLUMN truck_positions.fleet_id IS 'The fleet that the truck drove for; null where its device did not say';
COMMENT ON COLUMN latest_position.fleet_id IS 'The fleet that the truck drives for; null where its device did not say';
COMMENT ON COLUMN truck_alerts.fleet_id IS 'The fleet that the truck drove for; null where its device did not say';

ALTER TABLE order_lines ADD COLUMN customer_id text;
ALTER TABLE order_status_log ADD COLUMN customer_id text;
COMMENT ON COLUMN order_lines.customer_id IS 'Who ordered; null where the source does not say';
COMMENT ON COLUMN order_status_log.customer_id IS 'Who ordered; null where the source does not say, and of an order that was never placed';
UPDATE order_lines l SET customer_id = o.customer_id
FROM orders o WHERE o.tenant = l.tenant AND o.order_id = l.order_id AND o.customer_id IS NOT NULL;
-- A status from before the order was placed knew of no customer.
UPDATE order_status_log s SET customer_id = o.customer_id
FROM orders o
WHERE o.tenant = s.tenant AND o.order_id = s.order_id AND o.customer_id IS NOT NULL AND s.status <> 'UNKNOWN';

ALTER TABLE series ADD COLUMN patient_id text;
ALTER TABLE instance_uploads ADD COLUMN patient_id text;
COMMENT ON COLUMN series.patient_id IS '(0010,0020) Patient ID in the series'' first file';
COMMENT ON COLUMN instance_uploads.patient_id IS '(0010,0020) Patient ID in the uploaded file';
UPDATE series s SET patient_id = i.patient_id
FROM instances i WHERE i.tenant = s.tenant AND i.study_uid = s.study_uid AND i.event_id = s.event_id;
UPDATE instance_uploads u SET patient_id = i.patient_id
FROM instances i
WHERE i.tenant = u.tenant AND i.study_uid = u.study_uid AND i.sop_instance_uid = u.sop_instance_uid
  AND i.digest = u.digest;
