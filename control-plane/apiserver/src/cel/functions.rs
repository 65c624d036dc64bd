//! The functions that expressions may call, by name and overload: the standard library and what Kubernetes adds.

use super::Type;
use std::collections::HashMap;
use std::sync::LazyLock;

/// One line a name; overloads are separated by `;`. A leading dot makes the first parameter the receiver. `A` and `B`
/// are type parameters. Source: cel-spec, "List of Standard Definitions"; cel-go's ext packages for strings (v2), sets
/// and lists (v3); <https://kubernetes.io/docs/reference/using-api/cel/#cel-community-libraries>.
const TABLE: &str = "
_&&_ bool bool > bool
_||_ bool bool > bool
!_ bool > bool
@not_strictly_false bool > bool
_?_:_ bool A A > A
_==_ A A > bool
_!=_ A A > bool
_+_ int int > int; uint uint > uint; double double > double; string string > string; bytes bytes > bytes; list(A) list(A) > list(A); time dur > time; dur time > time; dur dur > dur
_-_ int int > int; uint uint > uint; double double > double; time time > dur; time dur > time; dur dur > dur
_*_ int int > int; uint uint > uint; double double > double
_/_ int int > int; uint uint > uint; double double > double
_%_ int int > int; uint uint > uint
-_ int > int; double > double
_[_] list(A) int > A; map(A,B) A > B
@in A list(A) > bool; A map(A,B) > bool
size string > int; bytes > int; list(A) > int; map(A,B) > int; .string > int; .bytes > int; .list(A) > int; .map(A,B) > int
type A > type
dyn A > dyn
int int > int; uint > int; double > int; string > int; time > int; dur > int
uint uint > uint; int > uint; double > uint; string > uint
double double > double; int > double; uint > double; string > double
string string > string; int > string; uint > string; double > string; bool > string; bytes > string; time > string; dur > string; ip > string; cidr > string
bytes bytes > bytes; string > bytes
bool bool > bool; string > bool
duration dur > dur; string > dur; int > dur
timestamp time > time; string > time; int > time
contains .string string > bool
startsWith .string string > bool
endsWith .string string > bool
matches .string string > bool; string string > bool
getFullYear .time > int; .time string > int
getMonth .time > int; .time string > int
getDayOfYear .time > int; .time string > int
getDayOfMonth .time > int; .time string > int
getDate .time > int; .time string > int
getDayOfWeek .time > int; .time string > int
getHours .time > int; .time string > int; .dur > int
getMinutes .time > int; .time string > int; .dur > int
getSeconds .time > int; .time string > int; .dur > int
getMilliseconds .time > int; .time string > int; .dur > int
charAt .string int > string
indexOf .string string > int; .string string int > int; .list(A) A > int
lastIndexOf .string string > int; .string string int > int; .list(A) A > int
join .list(string) > string; .list(string) string > string
lowerAscii .string > string
upperAscii .string > string
replace .string string string > string; .string string string int > string
split .string string > list(string); .string string int > list(string)
substring .string int > string; .string int int > string
trim .string > string
format .string list(dyn) > string
strings.quote string > string
find .string string > string
findAll .string string > list(string); .string string int > list(string)
isSorted .list(A) > bool
sum .list(int) > int; .list(uint) > uint; .list(double) > double; .list(dur) > dur
min .list(A) > A
max .list(A) > A
includes .list(A) A > bool
slice .list(A) int int > list(A)
flatten .list(list(A)) > list(A); .list(dyn) > list(dyn); .list(dyn) int > list(dyn)
sort .list(A) > list(A)
@sortByAssociatedKeys .list(A) list(B) > list(A)
distinct .list(A) > list(A)
reverse .list(A) > list(A); .string > string
first .list(A) > optional(A)
last .list(A) > optional(A)
lists.range int > list(int)
sets.contains list(A) list(A) > bool
sets.equivalent list(A) list(A) > bool
sets.intersects list(A) list(A) > bool
optional.of A > optional(A)
optional.ofNonZeroValue A > optional(A)
optional.none > optional(free)
hasValue .optional(A) > bool
value .optional(A) > A
or .optional(A) optional(A) > optional(A)
orValue .optional(A) A > A
url string > url
isURL string > bool
getScheme .url > string
getHost .url > string
getHostname .url > string
getPort .url > string
getEscapedPath .url > string
getQuery .url > map(string,list(string))
ip string > ip; .cidr > ip
isIP string > bool
ip.isCanonical string > bool
family .ip > int
isUnspecified .ip > bool
isLoopback .ip > bool
isLinkLocalMulticast .ip > bool
isLinkLocalUnicast .ip > bool
isGlobalUnicast .ip > bool
cidr string > cidr
isCIDR string > bool
containsIP .cidr string > bool; .cidr ip > bool
containsCIDR .cidr string > bool; .cidr cidr > bool
prefixLength .cidr > int
masked .cidr > cidr
quantity string > quantity
isQuantity string > bool
sign .quantity > int
isInteger .quantity > bool
asInteger .quantity > int
asApproximateFloat .quantity > double
isGreaterThan .quantity quantity > bool; .semver semver > bool
isLessThan .quantity quantity > bool; .semver semver > bool
compareTo .quantity quantity > int; .semver semver > int
add .quantity quantity > quantity; .quantity int > quantity
sub .quantity quantity > quantity; .quantity int > quantity
semver string > semver; string bool > semver
isSemver string > bool; string bool > bool
major .semver > int
minor .semver > int
patch .semver > int
format.named string > optional(format)
format.dns1123Label > format
format.dns1123Subdomain > format
format.dns1035Label > format
format.qualifiedName > format
format.dns1123LabelPrefix > format
format.dns1123SubdomainPrefix > format
format.dns1035LabelPrefix > format
format.labelValue > format
format.uri > format
format.uuid > format
format.byte > format
format.date > format
format.datetime > format
validate .format string > optional(list(string))
jsonpatch.escapeKey string > string
";

/// A type with parameters.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    Any,
    Free,
    Param(u8),
    Named(&'static str),
    List(Box<Shape>),
    Map(Box<Shape>, Box<Shape>),
    Optional(Box<Shape>),
    Kind,
}

/// One way to call a function.
#[derive(Debug)]
pub(super) struct Overload {
    /// The first parameter is the receiver.
    pub member: bool,
    pub parameters: Vec<Shape>,
    pub result: Shape,
}

fn shape(text: &str) -> Shape {
    let inner = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
    if let Some(of) = inner("list") {
        return Shape::List(Box::new(shape(of)));
    }
    if let Some(of) = inner("optional") {
        return Shape::Optional(Box::new(shape(of)));
    }
    if let Some((key, value)) = inner("map").and_then(|both| both.split_once(',')) {
        return Shape::Map(Box::new(shape(key)), Box::new(shape(value)));
    }
    match text {
        "A" => Shape::Param(0),
        "B" => Shape::Param(1),
        "dyn" => Shape::Any,
        "free" => Shape::Free,
        "type" => Shape::Kind,
        _ => Shape::Named(named(text)),
    }
}

/// The full name of a type of the table.
fn named(text: &str) -> &'static str {
    const NAMES: &[(&str, &str)] = &[
        ("bool", "bool"),
        ("int", "int"),
        ("uint", "uint"),
        ("double", "double"),
        ("string", "string"),
        ("bytes", "bytes"),
        ("time", "google.protobuf.Timestamp"),
        ("dur", "google.protobuf.Duration"),
        ("url", "kubernetes.URL"),
        ("ip", "net.IP"),
        ("cidr", "net.CIDR"),
        ("quantity", "kubernetes.Quantity"),
        ("semver", "kubernetes.Semver"),
        ("format", "kubernetes.NamedFormat"),
    ];
    NAMES.iter().find(|(short, _)| *short == text).map_or("dyn", |(_, name)| name)
}

/// Comparisons: of equal types, and of numbers of any kind.
fn comparisons() -> Vec<Overload> {
    const NUMBERS: [&str; 3] = ["int", "uint", "double"];
    const OTHERS: [&str; 5] = ["bool", "string", "bytes", "time", "dur"];
    let pair = |a: &str, b: &str| Overload {
        member: false,
        parameters: vec![shape(a), shape(b)],
        result: Shape::Named("bool"),
    };
    let numbers = NUMBERS.iter().flat_map(|a| NUMBERS.iter().map(move |b| pair(a, b)));
    numbers.chain(OTHERS.iter().map(|t| pair(t, t))).collect()
}

fn overload(text: &str) -> Option<Overload> {
    let (parameters, result) = text.split_once('>')?;
    let parameters = parameters.trim();
    let (member, parameters) = match parameters.strip_prefix('.') {
        Some(rest) => (true, rest),
        None => (false, parameters),
    };
    Some(Overload {
        member,
        parameters: parameters.split_whitespace().map(shape).collect(),
        result: shape(result.trim()),
    })
}

static FUNCTIONS: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
    let mut out: HashMap<&'static str, Vec<Overload>> = TABLE
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, overloads)| (name, overloads.split(';').filter_map(overload).collect()))
        .collect();
    for name in ["_<_", "_<=_", "_>_", "_>=_"] {
        out.insert(name, comparisons());
    }
    out
});

/// The overloads of a function.
pub(super) fn overloads(name: &str) -> Option<&'static [Overload]> {
    FUNCTIONS.get(name).map(Vec::as_slice)
}

/// The type that a name stands for as a value, as in `type(x) == string`.
pub(super) fn type_named(name: &str) -> Option<Type<'static>> {
    let of = match name {
        "bool" | "int" | "uint" | "double" | "string" | "bytes" => Type::Named(named(name)),
        "null_type" => Type::Named("null_type"),
        "google.protobuf.Timestamp" => Type::Named("google.protobuf.Timestamp"),
        "google.protobuf.Duration" => Type::Named("google.protobuf.Duration"),
        "net.IP" => Type::Named("net.IP"),
        "net.CIDR" => Type::Named("net.CIDR"),
        "kubernetes.Quantity" => Type::Named("kubernetes.Quantity"),
        "kubernetes.URL" => Type::Named("kubernetes.URL"),
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "optional_type" => Type::optional(Type::Dyn),
        "type" => Type::Kind(Type::Dyn.into()),
        _ => return None,
    };
    Some(Type::Kind(of.into()))
}
