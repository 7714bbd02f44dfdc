-- order_totals names every column it groups by: the table's key cannot speak for a view of a generation.
CREATE OR REPLACE VIEW order_totals AS
SELECT o.tenant, o.order_id, o.customer_id, o.status, o.placed_at, o.currency, o.total_minor,
       count(l.sku) AS skus, coalesce(sum(l.quantity), 0)::bigint AS units
FROM orders o LEFT JOIN order_lines l USING (tenant, order_id)
GROUP BY o.tenant, o.order_id, o.customer_id, o.status, o.placed_at, o.currency, o.total_minor;
