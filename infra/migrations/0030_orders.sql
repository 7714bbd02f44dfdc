-- Orders: where orders and stock stand, how they came there, and what analysts ask of them.
-- The CHECK constraints witness independently what the processors promise: no unit is sold twice.

CREATE TABLE orders (
    tenant           text        NOT NULL,
    order_id         text        NOT NULL,
    status           text        NOT NULL CHECK (status IN ('PENDING', 'CONFIRMED', 'REJECTING', 'REJECTED',
                                                            'CANCELLING', 'CANCELLED', 'RETURNING', 'RETURNED')),
    reason           text,
    customer_id      text,
    currency         text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    total_minor      bigint      NOT NULL CHECK (total_minor >= 0),
    placed_at        timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    input_id         text        NOT NULL,
    version          bigint      NOT NULL CHECK (version >= 1),
    code_version     integer     NOT NULL,
    source_partition integer     NOT NULL,
    source_offset    bigint      NOT NULL,
    PRIMARY KEY (tenant, order_id),
    CHECK (status NOT IN ('REJECTING', 'REJECTED') OR reason IS NOT NULL)
);
CREATE INDEX orders_by_customer ON orders (tenant, customer_id, placed_at DESC, order_id DESC);
CREATE INDEX orders_under_way ON orders (tenant, placed_at) WHERE status IN ('PENDING', 'REJECTING', 'CANCELLING', 'RETURNING');

COMMENT ON TABLE orders IS 'Every order and return with its newest status; refused inputs are in order_status_log alone';
COMMENT ON COLUMN orders.tenant IS 'Who owns the order';
COMMENT ON COLUMN orders.order_id IS 'The order''s id, given by its producer';
COMMENT ON COLUMN orders.status IS 'CONFIRMED: all lines are held. REJECTED, CANCELLED: nothing is held. RETURNED: goods are back in stock. PENDING and -ING: under way';
COMMENT ON COLUMN orders.reason IS 'Why the order was rejected';
COMMENT ON COLUMN orders.customer_id IS 'Who ordered; null where the source does not say';
COMMENT ON COLUMN orders.currency IS 'ISO 4217 code of the amounts';
COMMENT ON COLUMN orders.total_minor IS 'Sum of all lines in minor units';
COMMENT ON COLUMN orders.placed_at IS 'When it was ordered or given back (event time)';
COMMENT ON COLUMN orders.updated_at IS 'Event time of the input that led to the status';
COMMENT ON COLUMN orders.input_id IS 'Event id of that input';
COMMENT ON COLUMN orders.version IS 'The order''s status records so far';
COMMENT ON COLUMN orders.code_version IS 'Version of the processor''s code';
COMMENT ON COLUMN orders.source_partition IS 'Partition of order-status the row came from';
COMMENT ON COLUMN orders.source_offset IS 'Its offset there';

CREATE TABLE order_lines (
    tenant           text    NOT NULL,
    order_id         text    NOT NULL,
    sku              text    NOT NULL,
    quantity         bigint  NOT NULL CHECK (quantity > 0),
    amount_minor     bigint  NOT NULL CHECK (amount_minor >= 0),
    state            text    NOT NULL CHECK (state IN ('waiting', 'asked', 'held', 'rejected', 'releasing',
                                                       'released', 'restocking', 'restocked')),
    version          bigint  NOT NULL,
    source_partition integer NOT NULL,
    source_offset    bigint  NOT NULL,
    PRIMARY KEY (tenant, order_id, sku)
);
CREATE INDEX order_lines_by_sku ON order_lines (tenant, sku, order_id);

COMMENT ON TABLE order_lines IS 'The lines of every order, one per SKU, as of the order''s newest status';
COMMENT ON COLUMN order_lines.tenant IS 'Who owns the order';
COMMENT ON COLUMN order_lines.order_id IS 'The order';
COMMENT ON COLUMN order_lines.sku IS 'Stock keeping unit';
COMMENT ON COLUMN order_lines.quantity IS 'Units, summed over all lines of the SKU that the order came with';
COMMENT ON COLUMN order_lines.amount_minor IS 'Quantity times price, summed likewise, in minor units of the order''s currency';
COMMENT ON COLUMN order_lines.state IS 'waiting: not asked for. asked: reservation under way. held. rejected: not enough stock. releasing, released: given back. restocking, restocked: returned goods';
COMMENT ON COLUMN order_lines.version IS 'The order''s version that the row is from';
COMMENT ON COLUMN order_lines.source_partition IS 'Partition of order-status the row came from';
COMMENT ON COLUMN order_lines.source_offset IS 'Its offset there';

CREATE TABLE order_status_log (
    tenant           text        NOT NULL,
    order_id         text        NOT NULL,
    version          bigint      NOT NULL CHECK (version >= 1),
    event_id         text        NOT NULL,
    occurred_at      timestamptz NOT NULL,
    input_id         text        NOT NULL,
    input_kind       text        NOT NULL CHECK (input_kind IN ('placed', 'cancelled', 'returned')),
    outcome          text        NOT NULL CHECK (outcome IN ('accepted', 'refused')),
    status           text        NOT NULL,
    reason           text,
    code_version     integer     NOT NULL,
    source_partition integer     NOT NULL,
    source_offset    bigint      NOT NULL,
    PRIMARY KEY (tenant, order_id, version),
    CHECK (outcome = 'accepted' OR reason IS NOT NULL)
);
CREATE INDEX order_status_log_by_input ON order_status_log (input_id);

COMMENT ON TABLE order_status_log IS 'Every status of every order, and the answer to every order event, refused ones among them';
COMMENT ON COLUMN order_status_log.tenant IS 'Who owns the order';
COMMENT ON COLUMN order_status_log.order_id IS 'The order';
COMMENT ON COLUMN order_status_log.version IS 'Counts the order''s status records from 1, without gaps';
COMMENT ON COLUMN order_status_log.event_id IS 'Id of the status record';
COMMENT ON COLUMN order_status_log.occurred_at IS 'Event time of the input';
COMMENT ON COLUMN order_status_log.input_id IS 'Event id of the order event that is answered, or whose consequences came to an end';
COMMENT ON COLUMN order_status_log.input_kind IS 'placed, cancelled or returned';
COMMENT ON COLUMN order_status_log.outcome IS 'accepted, or refused: the input changed nothing, for the reason given';
COMMENT ON COLUMN order_status_log.status IS 'The order''s status after it; UNKNOWN before the order was placed';
COMMENT ON COLUMN order_status_log.reason IS 'Why it was rejected or refused';
COMMENT ON COLUMN order_status_log.code_version IS 'Version of the processor''s code';
COMMENT ON COLUMN order_status_log.source_partition IS 'Partition of order-status the row came from';
COMMENT ON COLUMN order_status_log.source_offset IS 'Its offset there';

CREATE TABLE stock (
    tenant           text        NOT NULL,
    sku              text        NOT NULL,
    on_hand          bigint      NOT NULL,
    reserved         bigint      NOT NULL,
    version          bigint      NOT NULL CHECK (version >= 1),
    updated_at       timestamptz NOT NULL,
    event_id         text        NOT NULL,
    source_partition integer     NOT NULL,
    source_offset    bigint      NOT NULL,
    PRIMARY KEY (tenant, sku),
    CHECK (on_hand >= 0 AND reserved >= 0 AND reserved <= on_hand)
);

COMMENT ON TABLE stock IS 'Stock per SKU after the newest command; available is on_hand less reserved';
COMMENT ON COLUMN stock.tenant IS 'Who owns the stock';
COMMENT ON COLUMN stock.sku IS 'Stock keeping unit';
COMMENT ON COLUMN stock.on_hand IS 'Units in the warehouse, reserved ones among them';
COMMENT ON COLUMN stock.reserved IS 'Units held by orders';
COMMENT ON COLUMN stock.version IS 'Stock commands applied to the SKU';
COMMENT ON COLUMN stock.updated_at IS 'Event time of the newest command';
COMMENT ON COLUMN stock.event_id IS 'Id of the newest command';
COMMENT ON COLUMN stock.source_partition IS 'Partition of stock-results the row came from';
COMMENT ON COLUMN stock.source_offset IS 'Its offset there';

CREATE TABLE stock_ledger (
    tenant           text        NOT NULL,
    sku              text        NOT NULL,
    version          bigint      NOT NULL CHECK (version >= 1),
    event_id         text        NOT NULL,
    occurred_at      timestamptz NOT NULL,
    kind             text        NOT NULL CHECK (kind IN ('receive', 'reserve', 'release', 'restock')),
    outcome          text        NOT NULL CHECK (outcome IN ('received', 'reserved', 'rejected', 'released', 'restocked')),
    reason           text,
    order_id         text        CHECK ((order_id IS NULL) = (kind = 'receive')),
    quantity         bigint      NOT NULL CHECK (quantity >= 0),
    on_hand          bigint      NOT NULL,
    reserved         bigint      NOT NULL,
    input_id         text        NOT NULL,
    code_version     integer     NOT NULL,
    source_partition integer     NOT NULL,
    source_offset    bigint      NOT NULL,
    PRIMARY KEY (tenant, sku, version),
    CHECK (on_hand >= 0 AND reserved >= 0 AND reserved <= on_hand)
);
CREATE INDEX stock_ledger_by_input ON stock_ledger (input_id);

COMMENT ON TABLE stock_ledger IS 'Every stock command that was applied, once, in the SKU''s order, with the balance after it';
COMMENT ON COLUMN stock_ledger.tenant IS 'Who owns the stock';
COMMENT ON COLUMN stock_ledger.sku IS 'Stock keeping unit';
COMMENT ON COLUMN stock_ledger.version IS 'Counts the SKU''s commands from 1, without gaps';
COMMENT ON COLUMN stock_ledger.event_id IS 'Id of the command';
COMMENT ON COLUMN stock_ledger.occurred_at IS 'Event time of what caused the command';
COMMENT ON COLUMN stock_ledger.kind IS 'receive, reserve, release or restock';
COMMENT ON COLUMN stock_ledger.outcome IS 'What became of it';
COMMENT ON COLUMN stock_ledger.reason IS 'Why it was rejected';
COMMENT ON COLUMN stock_ledger.order_id IS 'The order; null for receive';
COMMENT ON COLUMN stock_ledger.quantity IS 'Units that moved: 0 when rejected, what was really held when released';
COMMENT ON COLUMN stock_ledger.on_hand IS 'Units in the warehouse after it';
COMMENT ON COLUMN stock_ledger.reserved IS 'Units held by orders after it';
COMMENT ON COLUMN stock_ledger.input_id IS 'Event id of the order event or stock receipt that led to it';
COMMENT ON COLUMN stock_ledger.code_version IS 'Version of the processor''s code';
COMMENT ON COLUMN stock_ledger.source_partition IS 'Partition of stock-results the row came from';
COMMENT ON COLUMN stock_ledger.source_offset IS 'Its offset there';

CREATE VIEW order_totals AS
SELECT o.tenant, o.order_id, o.customer_id, o.status, o.placed_at, o.currency, o.total_minor,
       count(l.sku) AS skus, coalesce(sum(l.quantity), 0)::bigint AS units
FROM orders o LEFT JOIN order_lines l USING (tenant, order_id)
GROUP BY o.tenant, o.order_id;
COMMENT ON VIEW order_totals IS 'One row per order: how many SKUs and units, and its total in minor units';

CREATE VIEW orders_by_day AS
SELECT tenant, (placed_at AT TIME ZONE 'UTC')::date AS day, status, currency,
       count(*) AS orders, sum(total_minor)::numeric AS total_minor
FROM orders GROUP BY 1, 2, 3, 4;
COMMENT ON VIEW orders_by_day IS 'Orders and their totals per day (UTC), status and currency';

CREATE VIEW stock_low AS
SELECT tenant, sku, on_hand, reserved, on_hand - reserved AS available, updated_at
FROM stock WHERE (on_hand - reserved) * 10 <= on_hand;
COMMENT ON VIEW stock_low IS 'SKUs of which a tenth or less is still available';

CREATE VIEW order_stock_mismatches AS
SELECT coalesce(h.tenant, s.tenant) AS tenant, coalesce(h.sku, s.sku) AS sku,
       coalesce(s.reserved, 0) AS reserved, coalesce(h.held, 0)::bigint AS held_by_orders
FROM (SELECT tenant, sku, sum(quantity) AS held FROM order_lines JOIN orders USING (tenant, order_id)
      WHERE status = 'CONFIRMED' GROUP BY 1, 2) h
FULL JOIN stock s ON s.tenant = h.tenant AND s.sku = h.sku
WHERE coalesce(s.reserved, 0) <> coalesce(h.held, 0);
COMMENT ON VIEW order_stock_mismatches IS 'SKUs whose reserved units are not those of confirmed orders: empty whenever no order is under way';
