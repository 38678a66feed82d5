//! The pages say what is. `docs/abi.md` draws the layout: when it changes, raise `abi::SCHEMA`.
//! `docs/configuration.md` lists every setting. With `RATELIMITER_BLESS=1` the tests write what they
//! compare otherwise; look at the difference before you commit it.
#[path = "docs/configuration.rs"]
mod configuration;
#[path = "docs/page.rs"]
mod page;

use std::mem::offset_of;

use ratelimiter_common::abi::{config, counters, crowd, merge, policy, tracked};
use ratelimiter_common::{abi, vclock};

fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Draws one structure, and fails to compile if a field is missing.
macro_rules! draw {
    ($text:ident, $type:path { $($field:ident),* $(,)? }) => {{
        let complete = |value: &$type| {
            // Destructuring without `..` names every field.
            let &$type { $($field: _),* } = value;
        };
        let _: fn(&$type) = complete;
        draw!(@rows $text, $type { $($field),* })
    }};
    (@rows $text:ident, $type:path { $($field:ident),* }) => {{
        let name = std::any::type_name::<$type>().rsplit("::").next().unwrap_or_default();
        $text.push(format!("\n### `{name}`: {} bytes\n", size_of::<$type>()));
        $text.push("| offset | bytes | field |\n|---:|---:|---|".to_owned());
        let mut rows = vec![$((
            offset_of!($type, $field),
            size_of_field(|value: &$type| &value.$field),
            stringify!($field),
        )),*];
        rows.sort_unstable();
        for (offset, bytes, field) in rows {
            $text.push(format!("| {offset} | {bytes} | `{field}` |"));
        }
    }};
}

fn drawing() -> String {
    let mut text = Vec::new();
    text.push(format!("Schema number: {}.", abi::SCHEMA));
    draw!(
        text,
        config::Config {
            schema,
            flags,
            prefix_generation,
            v6_prefix_len,
            v6_mask,
            perm,
            regions4,
            regions6,
            malformed_ns,
            malformed_burst_ns,
            generic_segment_bytes,
            reserved,
        }
    );
    draw!(
        text,
        config::Region {
            base_set,
            set_mask,
            set_bits,
            draw,
            first_seen_ns
        }
    );
    draw!(text, config::PermKey { xor, mul });
    draw!(text, vclock::Speed { mult, shift });
    draw!(
        text,
        policy::PolicyEntry {
            identity,
            units,
            segment,
            slot,
            tag,
            revision,
            reserved,
            clocks,
        }
    );
    draw!(
        text,
        policy::Zone {
            slot,
            regions,
            used
        }
    );
    draw!(
        text,
        policy::PrefixKey4 {
            prefix_len,
            address_be
        }
    );
    draw!(
        text,
        policy::PrefixKey6 {
            prefix_len,
            address_be
        }
    );
    draw!(
        text,
        policy::PrefixValue {
            action,
            slot,
            until_ns,
            after_action,
            after_slot,
            prefix_len,
            reserved,
        }
    );
    draw!(text, crowd::Set4 { words });
    draw!(text, crowd::Set6 { ways });
    draw!(text, crowd::Way6 { key, state });
    draw!(text, crowd::SharedBucket { tat_ns, reserved });
    draw!(
        text,
        tracked::Tracked {
            binding,
            tats,
            offered,
            admitted,
            admitted_bytes,
            admitted_connections,
            cost_scale,
            window_eighths,
            demand_since_ns,
            offered_before,
            demand_per_s,
        }
    );
    draw!(text, counters::Count { packets, bytes });
    draw!(
        text,
        counters::SegmentCount {
            conforming,
            shadowed,
            dropped,
            conforming_bytes
        }
    );
    draw!(
        text,
        counters::Sample {
            key,
            at_ns,
            slot,
            bytes,
            weight,
            verdict,
            reason,
            family,
            protocol,
            zone,
            flags,
        }
    );
    draw!(
        text,
        counters::SampleRing {
            head,
            reserved,
            samples
        }
    );
    draw!(
        text,
        merge::MergeHeader {
            magic,
            count,
            reserved
        }
    );
    draw!(
        text,
        merge::MergeOp {
            op,
            unit,
            key,
            level,
            slot,
            family,
            result,
            generation
        }
    );
    text.push(String::new());
    text.join("\n")
}

#[test]
fn abi_is_drawn_as_it_is() {
    page::hold("abi.md", "layouts", &drawing());
}
