//! What the reflection service tells: the fields of [`super::message`], as Envoy's files name them.

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
};

/// Full name of the service.
pub const SERVICE: &str = "envoy.service.ratelimit.v3.RateLimitService";

/// What a field holds.
#[derive(Clone, Copy)]
enum Holds {
    String,
    U32,
    U64,
    I32,
    I64,
    Message(&'static str),
    Messages(&'static str),
    Enum(&'static str),
}

const DESCRIPTOR: &str = ".envoy.extensions.common.ratelimit.v3.RateLimitDescriptor";
const RESPONSE: &str = ".envoy.service.ratelimit.v3.RateLimitResponse";

/// Returns the files.
#[must_use]
pub fn files() -> FileDescriptorSet {
    let units = [
        ("UNKNOWN", 0),
        ("SECOND", 1),
        ("MINUTE", 2),
        ("HOUR", 3),
        ("DAY", 4),
        ("MONTH", 5),
        ("YEAR", 6),
        ("WEEK", 7),
    ];

    let duration = message(
        "Duration",
        &[("seconds", 1, Holds::I64), ("nanos", 2, Holds::I32)],
    );
    let number = message("UInt64Value", &[("value", 1, Holds::U64)]);
    let header = message(
        "HeaderValue",
        &[("key", 1, Holds::String), ("value", 2, Holds::String)],
    );
    let mut descriptor = message(
        "RateLimitDescriptor",
        &[
            (
                "entries",
                1,
                Holds::Messages(".envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.Entry"),
            ),
            (
                "limit",
                2,
                Holds::Message(
                    ".envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.RateLimitOverride",
                ),
            ),
            (
                "hits_addend",
                3,
                Holds::Message(".google.protobuf.UInt64Value"),
            ),
        ],
    );
    descriptor.nested_type = vec![
        message(
            "Entry",
            &[("key", 1, Holds::String), ("value", 2, Holds::String)],
        ),
        message(
            "RateLimitOverride",
            &[
                ("requests_per_unit", 1, Holds::U32),
                ("unit", 2, Holds::Enum(".envoy.type.v3.RateLimitUnit")),
            ],
        ),
    ];
    let request = message(
        "RateLimitRequest",
        &[
            ("domain", 1, Holds::String),
            ("descriptors", 2, Holds::Messages(DESCRIPTOR)),
            ("hits_addend", 3, Holds::U32),
        ],
    );
    let service = ServiceDescriptorProto {
        name: Some("RateLimitService".to_owned()),
        method: vec![MethodDescriptorProto {
            name: Some("ShouldRateLimit".to_owned()),
            input_type: Some(".envoy.service.ratelimit.v3.RateLimitRequest".to_owned()),
            output_type: Some(RESPONSE.to_owned()),
            ..MethodDescriptorProto::default()
        }],
        options: None,
    };
    FileDescriptorSet {
        file: vec![
            file(
                "google/protobuf/duration",
                "google.protobuf",
                vec![duration],
            ),
            file("google/protobuf/wrappers", "google.protobuf", vec![number]),
            FileDescriptorProto {
                enum_type: vec![enumeration("RateLimitUnit", &units)],
                ..file("envoy/type/v3/ratelimit_unit", "envoy.type.v3", vec![])
            },
            file(
                "envoy/config/core/v3/base",
                "envoy.config.core.v3",
                vec![header],
            ),
            FileDescriptorProto {
                dependency: imports(&["envoy/type/v3/ratelimit_unit", "google/protobuf/wrappers"]),
                ..file(
                    "envoy/extensions/common/ratelimit/v3/ratelimit",
                    "envoy.extensions.common.ratelimit.v3",
                    vec![descriptor],
                )
            },
            FileDescriptorProto {
                dependency: imports(&[
                    "envoy/config/core/v3/base",
                    "envoy/extensions/common/ratelimit/v3/ratelimit",
                    "google/protobuf/duration",
                ]),
                service: vec![service],
                ..file(
                    "envoy/service/ratelimit/v3/rls",
                    "envoy.service.ratelimit.v3",
                    vec![request, response(&units)],
                )
            },
        ],
    }
}

fn response(units: &[(&str, i32)]) -> DescriptorProto {
    let mut response = message(
        "RateLimitResponse",
        &[
            (
                "overall_code",
                1,
                Holds::Enum(".envoy.service.ratelimit.v3.RateLimitResponse.Code"),
            ),
            (
                "statuses",
                2,
                Holds::Messages(".envoy.service.ratelimit.v3.RateLimitResponse.DescriptorStatus"),
            ),
            (
                "response_headers_to_add",
                3,
                Holds::Messages(".envoy.config.core.v3.HeaderValue"),
            ),
        ],
    );
    let mut limit = message(
        "RateLimit",
        &[
            ("requests_per_unit", 1, Holds::U32),
            (
                "unit",
                2,
                Holds::Enum(".envoy.service.ratelimit.v3.RateLimitResponse.RateLimit.Unit"),
            ),
            ("name", 3, Holds::String),
        ],
    );
    limit.enum_type = vec![enumeration("Unit", units)];
    let status = message(
        "DescriptorStatus",
        &[
            (
                "code",
                1,
                Holds::Enum(".envoy.service.ratelimit.v3.RateLimitResponse.Code"),
            ),
            (
                "current_limit",
                2,
                Holds::Message(".envoy.service.ratelimit.v3.RateLimitResponse.RateLimit"),
            ),
            ("limit_remaining", 3, Holds::U32),
            (
                "duration_until_reset",
                4,
                Holds::Message(".google.protobuf.Duration"),
            ),
        ],
    );
    response.nested_type = vec![limit, status];
    response.enum_type = vec![enumeration(
        "Code",
        &[("UNKNOWN", 0), ("OK", 1), ("OVER_LIMIT", 2)],
    )];
    response
}

fn file(path: &str, package: &str, message_type: Vec<DescriptorProto>) -> FileDescriptorProto {
    FileDescriptorProto {
        name: Some(format!("{path}.proto")),
        package: Some(package.to_owned()),
        message_type,
        syntax: Some("proto3".to_owned()),
        ..FileDescriptorProto::default()
    }
}

fn imports(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| format!("{path}.proto")).collect()
}

fn message(name: &str, fields: &[(&str, i32, Holds)]) -> DescriptorProto {
    DescriptorProto {
        name: Some(name.to_owned()),
        field: fields
            .iter()
            .map(|(name, number, holds)| field(name, *number, *holds))
            .collect(),
        ..DescriptorProto::default()
    }
}

fn field(name: &str, number: i32, holds: Holds) -> FieldDescriptorProto {
    let (of, type_name) = match holds {
        Holds::String => (Type::String, None),
        Holds::U32 => (Type::Uint32, None),
        Holds::U64 => (Type::Uint64, None),
        Holds::I32 => (Type::Int32, None),
        Holds::I64 => (Type::Int64, None),
        Holds::Message(name) | Holds::Messages(name) => (Type::Message, Some(name)),
        Holds::Enum(name) => (Type::Enum, Some(name)),
    };
    let label = if matches!(holds, Holds::Messages(_)) {
        Label::Repeated
    } else {
        Label::Optional
    };
    FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(label.into()),
        r#type: Some(of.into()),
        type_name: type_name.map(str::to_owned),
        ..FieldDescriptorProto::default()
    }
}

fn enumeration(name: &str, values: &[(&str, i32)]) -> EnumDescriptorProto {
    EnumDescriptorProto {
        name: Some(name.to_owned()),
        value: values
            .iter()
            .map(|(name, number)| EnumValueDescriptorProto {
                name: Some((*name).to_owned()),
                number: Some(*number),
                options: None,
            })
            .collect(),
        ..EnumDescriptorProto::default()
    }
}
