//! Pod network: namespaces, veth pairs, addresses from the podCIDR, routes.
