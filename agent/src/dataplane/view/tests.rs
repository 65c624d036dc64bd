use super::*;

#[test]
fn protocols_have_names() {
    for number in [TCP, UDP, SCTP, ICMP, ICMPV6, 47] {
        assert_eq!(protocol_number(&protocol_name(number.into())), Ok(number));
    }
    assert_eq!(protocol_number("tcp"), Ok(TCP));
    assert!(protocol_number("256").unwrap_err().contains("256"));
}

#[test]
fn filters_combine() {
    let service = |namespace: &str, name: &str| ServicePort {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        port: String::new(),
    };
    let (web, other) = (service("a", "web"), service("b", "web"));
    let filter = Filter { service: Some("web".to_owned()), ..Filter::default() };
    assert!(filter.admits_service([&other].into_iter()) && !filter.admits_service([].into_iter()));
    let filter = Filter { service: Some("a/web".to_owned()), ..Filter::default() };
    assert!(
        filter.admits_service([&other, &web].into_iter()) && !filter.admits_service([&other].into_iter())
    );
    let filter = Filter { address: Some("10.0.0.1".parse().unwrap()), ..Filter::default() };
    let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
    assert!(filter.admits_address(&[address("::1"), address("::ffff:10.0.0.1")]));
    assert!(!filter.admits_address(&[address("10.0.0.2")]));
    assert!(Filter::default().admits_address(&[]) && Filter::default().admits_protocol(99));
}

#[test]
fn nothing_to_see_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let error = services(&Pins::new(directory.path()), &Filter::default()).unwrap_err();
    assert!(error.to_string().contains("kelp agent") && error.to_string().contains("--bpf-dir"), "{error}");
}
