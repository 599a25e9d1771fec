//! Texts of the API as the document has them: types that stand for a text with rules.

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{ObjectBuilder, Schema, SchemaType, Type},
    },
};

use crate::name::{DESCRIPTION, FOREIGN_NAME, NAME, NAME_PATTERN};

/// No control characters.
const LINE_PATTERN: &str = r"^[^\x00-\x1f\x7f-\x9f]*$";
/// No control characters, and no spaces at both ends.
const FOREIGN_PATTERN: &str =
    r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f])?$";
/// A VLAN, or two and a dash.
const VLANS_PATTERN: &str = r"^[0-9]+(-[0-9]+)?$";
/// An address of IPv4 or IPv6.
const ADDRESS_PATTERN: &str = r"^[0-9a-fA-F.:]{2,45}$";
/// An address, or one with a prefix length.
const PREFIX_PATTERN: &str = r"^[0-9a-fA-F.:]{2,45}(/[0-9]+)?$";
/// An address, a prefix, or two addresses and a dash.
const ADDRESSES_PATTERN: &str = r"^[0-9a-fA-F.:]{2,45}(/[0-9]+|-[0-9a-fA-F.:]{2,45})?$";
/// A port, or two and a dash.
const PORTS_PATTERN: &str = r"^[0-9]+(-[0-9]+)?$";
/// A file name, or an address of HTTPS without a user and password.
const HOOK_PATTERN: &str = r#"^([a-z0-9_-][a-z0-9._-]*|https://[!"$-.0->A-~]+([/?#][!-~]*)?)$"#;
/// A slash, and printable ASCII without spaces.
const PATH_PATTERN: &str = r"^/[!-~]*$";
/// Labels of letters, digits and dashes, between dots.
const DNS_PATTERN: &str = r"^[0-9a-zA-Z]([0-9a-zA-Z.-]*[0-9a-zA-Z])?$";

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident: $pattern:expr, $longest:expr;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name;

            impl PartialSchema for $name {
                fn schema() -> RefOr<Schema> {
                    text($pattern, $longest)
                }
            }

            impl ToSchema for $name {}
        )*
    };
}

texts! {
    /// Name of an object: 1 to 32 characters of a to z, 0 to 9 and '-'.
    ObjectName: NAME_PATTERN, Some(NAME);
    /// A text on one line, for people.
    Line: LINE_PATTERN, Some(DESCRIPTION);
    /// A name that another system gave.
    ForeignName: FOREIGN_PATTERN, Some(FOREIGN_NAME);
    /// A VLAN or a range of VLANs, from 1 to 4094.
    VlanRangeText: VLANS_PATTERN, None;
    /// An IPv4 or IPv6 address, without a prefix length.
    AddressText: ADDRESS_PATTERN, Some(45);
    /// An IPv4 or IPv6 network in CIDR notation.
    PrefixText: PREFIX_PATTERN, None;
    /// Addresses.
    AddressRangeText: ADDRESSES_PATTERN, None;
    /// A command or a webhook.
    HookText: HOOK_PATTERN, Some(1024);
    /// A path of HTTP.
    PathText: PATH_PATTERN, Some(1024);
    /// A host's name in DNS, such as gw1.example.net.
    DnsName: DNS_PATTERN, Some(253);
}

/// A port as a number, or ports as a text.
#[derive(Clone, Copy, Debug)]
pub struct PortsText;

impl PartialSchema for PortsText {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::from_iter([Type::String, Type::Integer]))
            .pattern(Some(PORTS_PATTERN))
            .minimum(Some(1))
            .maximum(Some(65_535))
            .build()
            .into()
    }
}

impl ToSchema for PortsText {}

/// Protocols of a rule.
#[derive(Clone, Copy, Debug)]
pub struct ProtocolText;

impl PartialSchema for ProtocolText {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(["tcp", "udp", "both"]))
            .build()
            .into()
    }
}

impl ToSchema for ProtocolText {}

fn text(pattern: &str, longest: Option<usize>) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(pattern))
        .max_length(longest)
        .build()
        .into()
}
