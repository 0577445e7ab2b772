//! Layout 2, as it was: the first behind the gate. (Layout 1 had its links among its maps, and nothing can take over from it.)
//!
//! Never changed once a release has had it: a later layout gets a file of its own.

use super::{Field, Layout, MapLayout, Record};

const fn field(name: &'static str, offset: usize, size: usize) -> Field {
    Field { name, offset, size }
}

const TUPLE: Record = Record {
    size: 40,
    fields: &[
        field("source", 0, 16),
        field("destination", 16, 16),
        field("source_port_be", 32, 2),
        field("destination_port_be", 34, 2),
        field("protocol", 36, 1),
        field("_zero", 37, 3),
    ],
};

const FLOW: Record = Record {
    size: 104,
    fields: &[
        field("new_source", 0, 16),
        field("new_destination", 16, 16),
        field("new_source_port_be", 32, 2),
        field("new_destination_port_be", 34, 2),
        field("address_delta", 36, 4),
        field("flags", 40, 4),
        field("ifindex", 44, 4),
        field("port_delta", 48, 4),
        field("deliver", 52, 4),
        field("opener", 56, 4),
        field("responder", 60, 4),
        field("egress", 64, 8),
        field("ingress", 72, 8),
        field("backend", 80, 4),
        field("backend_generation", 84, 4),
        field("service", 88, 4),
        field("last_seen", 92, 4),
        field("created", 96, 4),
        field("path", 100, 1),
        field("fin", 101, 1),
        field("partner_fin", 102, 1),
        field("closing", 103, 1),
    ],
};

const NUMBER: Record = Record {
    size: 4,
    fields: &[field("number", 0, 4)],
};

const SOCKET_KEY: Record = Record {
    size: 32,
    fields: &[
        field("cookie", 0, 8),
        field("address", 8, 16),
        field("port_be", 24, 2),
        field("protocol", 26, 1),
        field("_zero", 27, 5),
    ],
};

const SOCKET: Record = Record {
    size: 32,
    fields: &[
        field("address", 0, 16),
        field("port_be", 16, 2),
        field("_zero", 18, 2),
        field("backend", 20, 4),
        field("backend_generation", 24, 4),
        field("service", 28, 4),
    ],
};

const POD: Record = Record {
    size: 48,
    fields: &[
        field("egress", 0, 8),
        field("ingress", 8, 8),
        field("epoch", 16, 4),
        field("ifindex", 20, 4),
        field("flags", 24, 4),
        field("mac", 28, 6),
        field("host_mac", 34, 6),
        field("_zero", 40, 8),
    ],
};

const LINK: Record = Record {
    size: 8,
    fields: &[field("slot", 0, 4), field("_zero", 4, 4)],
};

const BYTES: Record = Record {
    size: 16,
    fields: &[field("bytes", 0, 16)],
};

const ADDRESS: Record = Record {
    size: 8,
    fields: &[
        field("identity", 0, 4),
        field("slot", 4, 2),
        field("kind", 6, 1),
        field("check", 7, 1),
    ],
};

const PREFIX: Record = Record {
    size: 8,
    fields: &[field("identity", 0, 4), field("_zero", 4, 4)],
};

const GROUP: Record = Record {
    size: 8,
    fields: &[field("group", 0, 4), field("_zero", 4, 4)],
};

const RULE: Record = Record {
    size: 16,
    fields: &[
        field("set", 0, 4),
        field("group", 4, 4),
        field("protocol", 8, 1),
        field("_zero", 9, 1),
        field("port_be", 10, 2),
        field("_rest", 12, 4),
    ],
};

const VERDICT: Record = Record {
    size: 8,
    fields: &[
        field("rule", 0, 4),
        field("priority", 4, 2),
        field("tier", 6, 1),
        field("action", 7, 1),
    ],
};

const SERVICE_KEY: Record = Record {
    size: 24,
    fields: &[
        field("address", 0, 16),
        field("port_be", 16, 2),
        field("protocol", 18, 1),
        field("_zero", 19, 5),
    ],
};

const SERVICE: Record = Record {
    size: 8,
    fields: &[
        field("pool", 0, 4),
        field("flags", 4, 2),
        field("check", 6, 2),
    ],
};

const HEAD: Record = Record {
    size: 8,
    fields: &[field("first", 0, 4), field("count", 4, 4)],
};

const SLOT: Record = Record {
    size: 4,
    fields: &[field("backend", 0, 4)],
};

const BACKEND: Record = Record {
    size: 24,
    fields: &[field("address", 0, 16), field("word", 16, 8)],
};

const fn map(name: &'static str, key: Record, value: Record) -> MapLayout {
    MapLayout { name, key, value }
}

pub(super) const LAYOUT: Layout = Layout {
    number: 2,
    maps: &[
        map("conntrack", TUPLE, FLOW),
        map("unreplied", TUPLE, FLOW),
        map("sock_reverse", SOCKET_KEY, SOCKET),
        map("pods", NUMBER, POD),
        map("links", NUMBER, LINK),
        map("addresses", BYTES, ADDRESS),
        map("prefixes", BYTES, PREFIX),
        map("groups", NUMBER, GROUP),
        map("rules", RULE, VERDICT),
        map("services", SERVICE_KEY, SERVICE),
        map("heads", NUMBER, HEAD),
        map("slots", NUMBER, SLOT),
        map("backends", NUMBER, BACKEND),
    ],
};
