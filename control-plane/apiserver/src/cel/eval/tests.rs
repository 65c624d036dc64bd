use super::super::{meter, value};
use super::*;
use crate::structural::Structural;
use serde_json::{Value, json};

fn schema() -> Structural {
    Structural::parse(&json!({"type": "object", "properties": {
        "n": {"type": "integer"},
        "r": {"type": "number"},
        "s": {"type": "string"},
        "namespace": {"type": "string"},
        "a-b": {"type": "string"},
        "when": {"type": "string", "format": "date-time"},
        "long": {"type": "string", "format": "duration"},
        "list": {"type": "array", "items": {"type": "string"}},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    }}))
}

fn object() -> Value {
    json!({"kind": "Foo", "metadata": {"name": "foo", "labels": {"a": "b"}},
        "n": 3, "r": 2, "s": "text", "namespace": "x", "a-b": "y", "when": "2026-01-02T03:04:05Z", "long": "90s",
        "list": ["a", "b", "c"], "set": ["a", "b"], "keyed": [{"k": "a", "v": 1}, {"k": "b", "v": 2}],
        "map": {"one": 1, "two": 2}})
}

fn evaluate(source: &str, object: &Value, budget: u64) -> (Result<Outcome, Failure>, u64) {
    let schema = schema();
    let program = Program::compile(source).expect(source);
    program.run(&Variables { own: value(object, &schema, true), old: None }, budget)
}

fn outcome_of(source: &str) -> Result<Outcome, Failure> {
    evaluate(source, &object(), meter::PER_OBJECT).0
}

#[test]
fn what_is_true_of_an_object_is_found() {
    for source in [
        "self.n == 3 && self.r == 2.0 && self.n < self.r + 2.0",
        "self.metadata.name.startsWith('f') && self.kind == 'Foo' && !has(self.metadata.labels)",
        "self.__namespace__ == 'x' && self.a__dash__b == 'y'",
        "has(self.s) && !has(self.absent) && self.?absent.orValue('z') == 'z' && self.list[?7] == optional.none()",
        "self.list.all(x, x.size() == 1) && self.list.exists(x, x == 'b') && self.list.exists_one(x, x == 'c')",
        "self.list.map(x, x + x) == ['aa', 'bb', 'cc'] && self.list.filter(x, x > 'a').size() == 2",
        "self.map.all(k, self.map[k] > 0) && self.map.exists(k, v, k == 'two' && v == 2)",
        "self.list.all(i, v, self.list[i] == v) && self.list.exists_one(i, v, i == 1)",
        "self.list.transformList(i, v, i > 0, v) == ['b', 'c']",
        "self.map.transformMap(k, v, v + 1)['two'] == 3",
        "{'a': 1}.transformMapEntry(k, v, {v: k})[1] == 'a'",
        "self.set == ['b', 'a'] && self.set + ['b', 'c'] == ['c', 'b', 'a'] && self.list != ['b', 'a', 'c']",
        "(self.keyed + [{'k': 'a', 'v': 5}]).exists(x, x.k == 'a' && x.v == 5) && self.keyed.size() == 2",
        "self.when > timestamp('2020-01-01T00:00:00Z') && self.when.getFullYear() == 2026",
        "self.long == duration('1m30s') && self.long + duration('30s') == duration('2m')",
        "self.s.matches('^t.*t$') && matches(self.s, 'ex') && self.s.find('e.') == 'ex'",
        "self.s.replace('t', 'T') == 'TexT' && self.s.replace('t', '', 1) == 'ext' && 'ab'.replace('', '-') == '-a-b-'",
        "self.list.join('-') == 'a-b-c' && self.list.join() == 'abc' && 'a,b'.split(',') == ['a', 'b']",
        "'%s is %d'.format([self.s, self.n]) == 'text is 3' && self.s.charAt(1) == 'e' && self.s.indexOf('x') == 2",
        "self.list.isSorted() && [3, 1].min() == 1 && [3, 1].max() == 3 && [1, 2].sum() == 3",
        "self.list.indexOf('b') == 1 && self.list.first() == optional.of('a') && self.list.last().value() == 'c'",
        "[1, 1, 2].distinct() == [1, 2] && [3, 1, 2].sort() == [1, 2, 3] && [[1], [2]].flatten() == [1, 2]",
        "lists.range(3) == [0, 1, 2] && self.list.slice(1, 2) == ['b'] && self.list.reverse()[0] == 'c'",
        "sets.contains([1, 2], [1]) && sets.equivalent([1, 2], [2, 1, 1]) && !sets.intersects([1], [2])",
        "optional.of(self.n).optMap(x, x + 1).value() == 4 && optional.none().optFlatMap(x, x) == optional.none()",
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('50k').add(20) == quantity('50020')",
        "quantity('1500m').sign() == 1 && !quantity('1500m').isInteger() && quantity('2k').asInteger() == 2000",
        "url('https://u@a.b:80/c?d=e&d=f').getHost() == 'a.b:80' && url('https://a/?q=1').getQuery()['q'] == ['1']",
        "isURL('/path') && !isURL('path') && url('http://[::1]:8/x').getHostname() == '::1'",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('::ffff:1.2.3.4') && ip.isCanonical('::1')",
        "cidr('10.1.2.3/8').containsIP('10.9.9.9') && cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16'))",
        "cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && string(cidr('10.0.0.0/8').ip()) == '10.0.0.0'",
        "cidr('0.0.0.0/0').containsIP('1.2.3.4') && cidr('::/0').prefixLength() == 0 && !isCIDR('1.2.3.4/33')",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('v1.0', true) && !isSemver('v1.0')",
        "!format.dns1123Label().validate('ok').hasValue() && format.named('uuid').value().validate('x').hasValue()",
        "jsonpatch.escapeKey('a/b~') == 'a~1b~0' && type(self.n) == int && dyn(self.n) == 3",
        "[1, 2].exists(x, x / (x - 1) == 2) && self.n in [1, 3] && 'one' in self.map && !('three' in self.map)",
        "self.n == 4 || self.n == 3 ? self.s == 'text' : false",
    ] {
        assert_eq!(outcome_of(source), Ok(Outcome::Bool(true)), "{source}");
    }
    assert_eq!(outcome_of("self.s + '!'"), Ok(Outcome::Text("text!".into())));
    assert_eq!(outcome_of("self.n"), Ok(Outcome::Other));
}

#[test]
fn what_has_no_result_says_why() {
    for (source, why) in [
        ("self.absent == 1", "no such key: absent"),
        ("1 / (self.n - 3) == 1", "division by zero"),
        ("self.list[9] == ''", "index out of bounds: 9"),
        ("9223372036854775807 + self.n > 0", "integer overflow"),
        ("dyn(self.n) < dyn(self.s)", "no such overload"),
    ] {
        assert_eq!(outcome_of(source), Err(Failure::Error(why.into())), "{source}");
    }
}

/// Each of these would take minutes, or all memory, if nothing bounded it.
#[test]
fn what_explodes_fails() {
    let many: Vec<String> = (0..20_000).map(|i| i.to_string()).collect();
    let mut large = object();
    large["list"] = json!(many);
    large["set"] = json!(many);
    large["s"] = Value::from("a".repeat(1_000_000));
    for source in [
        "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c != '')))",
        "self.list.map(a, self.list.map(b, self.list.map(c, a))).size() > 0",
        "self.list.filter(a, self.list.exists(b, self.list.exists_one(c, c == a))).size() > 0",
        "self.list.all(i, a, self.list.all(j, b, self.list.all(k, c, k >= 0 || a == b)))",
        "self.list.transformList(i, a, self.list.transformMap(j, b, a)).size() > 0",
        "self.list.map(a, self).size() > 0",
        "self.list.map(a, {'a': self}).size() > 0",
        "self.list.all(a, self.?list.hasValue())",
        "self.list.all(a, optional.of(self.list).hasValue())",
        "self.list.all(a, self.s.size() > 0 && self.s.replace('a', 'b') != '')",
        "self.list.all(a, self.s == self.s + a || true)",
        "self.s.replace('a', self.s).size() > 0",
        "self.s.replace('', self.s).size() > 0",
        "self.list.join(self.s) != ''",
        "self.list.distinct().size() > 0",
        "self.set == self.set.reverse()",
        "self.set + self.set.reverse() == self.set",
        "sets.equivalent(self.list, self.list)",
        "self.list.all(a, lists.range(1000000).size() > 0)",
        "self.list.all(a, self.s.matches('(' + a + 'x?){1,200}$') || true)",
        "self.list.all(a, !(self.s.contains('ab')))",
    ] {
        let (outcome, cost) = evaluate(source, &large, meter::PER_OBJECT);
        assert_eq!(outcome, Err(Failure::TooExpensive), "{source}: {cost}");
    }
}

#[test]
fn large_objects_are_no_fault() {
    let many: Vec<String> = (0..5_000).map(|i| i.to_string()).collect();
    let members: serde_json::Map<String, Value> = many.iter().map(|k| (k.clone(), 1.into())).collect();
    let mut large = object();
    (large["list"], large["set"], large["map"]) = (json!(many), json!(many), members.into());
    for source in [
        "self.list.all(x, x in self.map) && self.list.map(x, x + '.').size() == 5000",
        "self.set == self.list && self.list.join(',').size() > 5000 && self.list.all(x, x.matches('^[0-9]+$'))",
    ] {
        let (outcome, cost) = evaluate(source, &large, meter::PER_OBJECT);
        assert_eq!(outcome, Ok(Outcome::Bool(true)), "{source}: {cost}");
    }
}

#[test]
fn a_budget_is_kept() {
    let (outcome, cost) = evaluate("self.list.all(x, x != '')", &object(), meter::PER_OBJECT);
    assert_eq!(outcome, Ok(Outcome::Bool(true)));
    let (outcome, _) = evaluate("self.list.all(x, x != '')", &object(), cost);
    assert_eq!(outcome, Ok(Outcome::Bool(true)));
    let (_, spent) = evaluate("self.list.all(x, x != '')", &object(), cost - 1);
    assert!(spent > cost - 1);
}

/// Workers have two mebibytes of stack.
#[test]
fn nesting_that_is_parsed_is_evaluated() {
    let worker = std::thread::Builder::new().stack_size(2 << 20).spawn(|| {
        let mut parsed = 0;
        for (open, inner, close) in [
            ("(", "true", ")"),
            ("!", "true", ""),
            ("[", "1", "]"),
            ("{'a': ", "1", "}"),
            ("true ? true : (", "true", ")"),
            ("[1].all(x, ", "true", ")"),
            ("[1].map(x, ", "1", ")"),
            ("[1].transformList(i, v, ", "1", ")"),
            ("optional.of(1).optMap(x, ", "1", ")"),
            ("optional.of(", "1", ")"),
            ("'a' + (", "'a'", ")"),
        ] {
            for depth in [1, 5, 10, 20, 40, 60, 80, 95, 200, 20_000] {
                let source = format!("{}{inner}{}", open.repeat(depth), close.repeat(depth));
                let (schema, object) = (schema(), object());
                let _ = crate::cel::check(&json!({"type": "object"}), true, false, &source);
                if let Ok(program) = Program::compile(&source) {
                    let variables = Variables { own: value(&object, &schema, true), old: None };
                    let (outcome, _) = program.run(&variables, meter::PER_OBJECT);
                    assert!(matches!(outcome, Ok(_) | Err(Failure::TooExpensive)), "{source}: {outcome:?}");
                    parsed += 1;
                }
            }
        }
        parsed
    });
    assert!(worker.expect("thread").join().expect("no panic") > 30);
}

proptest::proptest! {
    /// Whatever the parser takes is answered, not fallen over.
    #[test]
    fn any_expression_is_answered(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "self", ".list", ".s", ".n", ".map", "[0]", ".?s", "[?1]", "'a'", "1", "-1", " + ", " == ", " in ", " && ",
            ".size()", ".all(x, ", "x", ")", ".map(i, ", ".optMap(y, ", ".transformMap(k, v, ", "[", "]", "{", ": ", "}", ", ",
            ".replace('', 'b')", ".join()", ".distinct()", ".matches('a')", "quantity(", "optional.of(", " ? ", " : ", "!",
        ]), 1..14),
    ) {
        if let Ok(program) = Program::compile(&parts.concat()) {
            let (schema, object) = (schema(), object());
            let _ = program.run(&Variables { own: value(&object, &schema, true), old: None }, meter::PER_OBJECT);
        }
    }
}
